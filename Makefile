.DEFAULT_GOAL := help
.PHONY: help demo lint test test-all format bench defaults constraints clean

# The interpreters to try, in this order: `make demo PYTHON=/path/to/python` names your own.
# A pyenv shim exists for versions that are not active, too, so a candidate counts once it has run.
PYTHON ?= python3.12 python3.13 python3 python
suitable := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))
python = $(or $(firstword $(foreach p,$(PYTHON),$(shell $(p) -c '$(suitable)' 2>/dev/null && echo $(p)))),\
	$(error No Python 3.12 or newer with its venv module was found (tried: $(PYTHON)): install one, or name it with PYTHON=/path/to/python))

bin := .venv/bin
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help: ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r target does; do \
		printf 'make %-12s %s\n' "$$target" "$$does"; done

# A stamp is written last, so an environment that was not finished is made anew.
.venv/core: pyproject.toml constraints.txt
	@echo "Making .venv with $(python): the first time takes a few minutes ..."
	@$(python) -m venv --clear .venv && $(pip) --editable . || { rm -rf .venv; exit 1; }
	@touch $@

.venv/dev: .venv/core
	@echo "Adding the development tools to .venv ..."
	@$(pip) --editable '.[dev,notebook]'
	@touch $@

demo: .venv/core ## train on spirals; figures, metrics and posterior draws go to runs/spirals
	$(bin)/np-latentode spirals --output-dir runs/spirals --overwrite

lint: .venv/dev ## lint, check the order of imports and the types
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/lint-imports --no-cache
	$(bin)/pyright

test: lint ## lint, then run all tests but the slow ones: what continuous integration runs
	$(bin)/pytest -n 2 --dist loadfile -m 'not slow'

test-all: lint ## lint, then run all tests: before a release, and after a change of numbers
	$(bin)/pytest -n 2 --dist loadfile

format: .venv/dev ## fix what ruff can fix, and format
	$(bin)/ruff check --fix
	$(bin)/ruff format

# An interpreter with torch and torchdiffeq, for the peer in PyTorch.
TORCH_PYTHON ?= $(bin)/python

bench: .venv/core ## time and score other latent ODEs beside ours; figures go to runs/*.json
	@mkdir -p runs
	$(bin)/python benchmarks/peers.py --output runs/peers.json --torch-python $(TORCH_PYTHON)
	$(bin)/python benchmarks/step.py --output runs/step.json

defaults: .venv/core ## print the scores of the defaults over five seeds
	$(bin)/python benchmarks/defaults.py

constraints: ## pin the newest releases that pyproject.toml allows
	$(python) -m venv --clear .venv
	$(bin)/python -m pip install --quiet --editable '.[dev,notebook]'
	$(bin)/python -m pip freeze --exclude-editable > constraints.txt

clean: ## remove the environment, caches and build outputs; keep runs/
	rm -rf .venv .hypothesis .pytest_cache .ruff_cache build dist
	find src tests benchmarks notebooks -name __pycache__ -prune -exec rm -r {} +
