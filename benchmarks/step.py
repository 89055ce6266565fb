"""How much of the machine's matrix rate does a training step reach? At the size of the hoppers.

    .venv/bin/python benchmarks/step.py --output step.json

A step of the study of hoppers: a batch of 100, 64 latent dimensions, a field of 256 units, 10 of
100 states seen. The data are waves, as nothing that is timed depends on the values.

- Arithmetic is our own count, 2 m n k for each matrix product in the program of a step (its jaxpr),
  times the steps of the loops around it, with what gradients compute again. XLA's own count,
  `cost_analysis`, takes the body of a loop once. Elementwise work is not counted.
- The machine's rate is measured in the same rounds: bare products of exactly these shapes, each in
  a compiled loop, as often as a step has them. Their time over that of the step is the share.

Seconds are CPU seconds, on one core where the system can keep the process there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from peers import one_core

from np_latentode import Trajectories, optimizer
from np_latentode.studies.hopper import BATCH_SIZE, LEARNING_RATE, make_model, see
from np_latentode.training.plan import Plan, make_plan

NUM_FEATURES, NUM_TIMES, NUM_SEEN = 14, 100, 10
STEPS, SECONDS_A_SHAPE = 20, 0.02


def products(jaxpr: Any) -> Counter:
    """How often each matrix product is computed, by its shapes and axes.

    Raises:
        ValueError: for one in a loop whose number of steps is not in the program.
    """
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            shapes = (var.aval.shape for var in equation.invars)
            found[*shapes, params["dimension_numbers"]] += 1
            continue
        inner = [products(one) for one in programs_in(params)]
        if name == "while" and any(inner):
            raise ValueError("a while loop has matrix products: its steps cannot be counted.")
        if name == "cond":
            # A solve's step is taken or skipped; here all are taken.
            inner = [max(inner, key=flops)]
        for counts in inner:
            for product, count in counts.items():
                found[product] += count * params.get("length", 1)
    return found


def programs_in(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation runs, such as the body of a loop."""
    kinds = (Jaxpr, ClosedJaxpr)
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, kinds))
    inner = [leaf for leaf in leaves if isinstance(leaf, kinds)]
    return [one.jaxpr if isinstance(one, ClosedJaxpr) else one for one in inner]


def flops_of(product: Any) -> int:
    left, right, ((_, over), (_, batch)) = product
    others = [size for axis, size in enumerate(right) if axis not in (*over, *batch)]
    return 2 * math.prod(left) * math.prod(others)


def flops(counts: Counter) -> int:
    return sum(count * flops_of(product) for product, count in counts.items())


def hopper_plan() -> Plan:
    """The training of the study, on waves."""
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (1_000, 1, NUM_FEATURES))
    times = np.broadcast_to(np.linspace(0.0, 1.0, NUM_TIMES), (1_000, NUM_TIMES))
    train = Trajectories(times, np.sin(6 * times[..., None] + phase))
    model, guide = make_model(train, rngs=nnx.Rngs(0))
    # One step less than the study allows, so that none is skipped.
    model = model.with_solver(max_steps=model.solver.max_steps - 1)
    return make_plan(
        jax.random.key(0),
        model,
        guide,
        train,
        None,
        num_steps=10_000,
        batch_size=BATCH_SIZE,
        conditioning=partial(see, count=NUM_SEEN, context=NUM_TIMES),
        optim=optimizer(10_000, learning_rate=LEARNING_RATE),
        kl_weight=None,
        loss=None,
        patience=None,
    )


def bare(product: Any) -> Callable[[int], None]:
    """A function that computes a product some times, and nothing else that takes time."""
    left, right, axes = product
    keys = jax.random.split(jax.random.key(0))
    a, b = jax.random.normal(keys[0], left), jax.random.normal(keys[1], right)

    @jax.jit
    def compute(count: int, a: Any, b: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            a, out = carry
            # Each product needs one number of the last, so that none can be left out.
            a = a.at[(0,) * a.ndim].set(jax.numpy.tanh(out[(0,) * out.ndim]))
            return a, jax.lax.dot_general(a, b, axes)

        return jax.lax.fori_loop(0, count, body, (a, jax.lax.dot_general(a, b, axes)))[1]

    return lambda count: compute(count, a, b).block_until_ready()


def seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(rounds: int) -> dict[str, Any]:
    plan = hopper_plan()
    _, state = plan.programs.init(plan.rng_key, plan.train, None)
    step = partial(plan.programs.svi.stable_update, state, plan.train)
    counts = products(jax.make_jaxpr(step)().jaxpr)

    def take(count: int) -> None:
        plan.programs.take(state, 0, count, plan.train)[1].block_until_ready()

    shapes = {product: bare(product) for product in counts}
    for run in (take, *shapes.values()):
        run(1)
    repeats = {p: math.ceil(SECONDS_A_SHAPE * 1e10 / flops_of(p)) for p in counts}
    steps, alone = [], {product: [] for product in counts}
    for _ in range(rounds):
        steps.append(seconds(partial(take, STEPS)) / STEPS)
        for product, run in shapes.items():
            spent = seconds(partial(run, repeats[product])) / repeats[product]
            alone[product].append(spent * counts[product])
    return {"counts": counts, "steps": np.array(steps), "alone": alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    one_core()
    found = measure(arguments.rounds)
    counts, steps, alone = found["counts"], found["steps"], found["alone"]
    print("| product | times a step | MFLOP in all | GFLOP/s alone |\n|---|---|---|---|")
    for product in sorted(counts, key=lambda p: -np.median(alone[p])):
        total, spent = counts[product] * flops_of(product), float(np.median(alone[product]))
        left, right, ((over, _), _) = product
        label = f"{left} by {right}, over axis {over} of the first"
        print(f"| {label} | {counts[product]} | {total / 1e6:.1f} | {total / spent / 1e9:.0f} |")
    products_alone = np.sum([*alone.values()], axis=0)
    shares, total = products_alone / steps, flops(counts)
    summary = {
        "gflop": total / 1e9,
        "step_seconds": float(np.median(steps)),
        "achieved_gflop_per_second": total / 1e9 / float(np.median(steps)),
        "rate_gflop_per_second": total / 1e9 / float(np.median(products_alone)),
        "share": float(np.median(shares)),
        "share_lowest": float(shares.min()),
        "share_highest": float(shares.max()),
    }
    print()
    for name, value in summary.items():
        print(f"{name:28s}{value:10.4f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
