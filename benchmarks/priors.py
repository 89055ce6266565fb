"""Does a prior that is fitted to the codes of N(0, I) match them? Over several seeds.

    python benchmarks/priors.py --seeds 5 --prior flow/ring+mixture

For each seed it trains under N(0, I), fits the named prior to the codes, and scores both on fresh
spirals: 500 for forecasts, 20,000 for codes. `--jointly` also trains under the named prior from the
start.
"""

from __future__ import annotations

import argparse

import jax
from summary import print_summary

from np_latentode import datasets
from np_latentode.studies.spirals_priors import on_codes, score_prior, train

KEYS = (
    "elbo",
    "kl",
    "mutual_information",
    "kl_marginal",
    "prior_phase_ks",
    "prior_predictive_share",
    "reconstruction_mse",
    "extrapolation_mse",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--prior", default="flow/ring+mixture")
    parser.add_argument("--jointly", action="store_true")
    arguments = parser.parse_args()
    family = datasets.SpiralFamily()
    spirals = family.sample(jax.random.key(0), 250)[:200]
    fresh = family.sample(jax.random.key(1_000), 500)
    codes = family.sample(jax.random.key(2_000), 20_000)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        settings = dict(steps=arguments.steps, seed=seed, latent_dim=4, batch_size=50)
        normal = train("normal", spirals, **settings, progress=False)
        key, name = jax.random.key(seed), arguments.prior
        fits = {
            "normal": normal,
            f"{name} on codes": on_codes(key, name, normal, spirals, seed=seed, progress=False),
        }
        if arguments.jointly:
            fits[name] = train(name, spirals, **settings, progress=False)
        for label, trained in fits.items():
            scores = score_prior(key, trained.fitted, family, codes=codes, fresh=fresh)
            rows.setdefault(label, []).append(scores)
            print(label, seed, {k: round(scores[k], 4) for k in KEYS}, flush=True)
    for label, scores in rows.items():
        print()
        print_summary(label, scores, KEYS)


if __name__ == "__main__":
    main()
