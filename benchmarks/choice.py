"""Which model forecasts best? `az.compare` between priors, latent dimensions and encoders.

    python benchmarks/choice.py --seeds 3

Each candidate is trained on the same 200 spirals, and differs from the first in one part. `elpd`
scores it on 200 fresh spirals, by importance sampling from refined posteriors: once on whole
spirals, and once on their second half given the first.
"""

from __future__ import annotations

import argparse

import arviz_stats
import jax
from flax import nnx

from np_latentode import GRU, PathODE, datasets, elpd, fit, latent_ode, refine
from np_latentode.studies.spirals_priors import make_prior
from np_latentode.studies.spirals_scores import CUT


def parts(name: str, seed: int) -> dict:
    """Arguments of `latent_ode` by a candidate's name."""
    rngs = nnx.Rngs(seed + 1_000)
    kind, _, value = name.partition(" ")
    encoders = {"GRU": GRU, "PathODE": PathODE}
    return {"latent_dim": 4} | {
        "normal,": lambda: {},
        "prior": lambda: make_prior(value, 4, rngs=rngs),
        "latent_dim": lambda: {"latent_dim": int(value)},
        "encoder": lambda: {"encoder": encoders[value](2, rngs=rngs)},
    }[kind]()


CANDIDATES = (
    "normal, 4, ODERNN",
    "prior mixture",
    "prior flow",
    "prior ring+mixture",
    "latent_dim 2",
    "latent_dim 3",
    "latent_dim 8",
    "encoder GRU",
    "encoder PathODE",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=CANDIDATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14_000)
    arguments = parser.parse_args()
    family = datasets.SpiralFamily()
    train = family.sample(jax.random.key(0), 250)[:200]
    fresh = family.sample(jax.random.key(1_000), 200)
    early, late = fresh.before(CUT), fresh.after(CUT)
    key = jax.random.key(7)
    for seed in range(arguments.seeds):
        whole, ahead = {}, {}
        for name in arguments.names:
            model, guide = latent_ode(train, **parts(name, seed), rngs=nnx.Rngs(seed))
            fitted = fit(
                jax.random.key(seed),
                model,
                guide,
                train,
                num_steps=arguments.steps,
                batch_size=50,
                progress=False,
            )
            for scores, context, target in ((whole, fresh, None), (ahead, early, late)):
                refine_key, key = jax.random.split(key)
                q = refine(refine_key, fitted, context).q
                scores[name] = elpd(key, fitted, context, target, q=q)
            print(seed, name, whole[name].elpd, ahead[name].elpd, flush=True)
        for title, scores in (("whole spirals", whole), ("forecasts", ahead)):
            print(f"\nseed {seed}, {title}")
            table = arviz_stats.compare(scores)
            print(table[["elpd", "elpd_diff", "dse", "p", "diag_elpd", "weight"]], flush=True)


if __name__ == "__main__":
    main()
