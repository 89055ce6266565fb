"""q(z0) = E_n q(z0 | x_n), the aggregate posterior: a prior that is fitted to it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from jaxtyping import Array
from numpyro.infer import SVI, Trace_ELBO
from tqdm import tqdm

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.prediction import posterior
from np_latentode.parts.modules import (
    Part,
    bind_prior,
    check_module,
    parameter_names,
    vector_distribution,
)
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.plate import check_context
from np_latentode.training.fit import dispatches, optimizer

__all__ = ["fit_prior"]

MOSTLY_WHOLE = functools.partial(random_context, whole_share=0.8)


def fit_prior(
    rng_key: Array,
    prior: Part,
    guide: AmortizedGuide,
    params: dict[str, Any],
    trajectories: Trajectories,
    *,
    conditioning: Conditioning = MOSTLY_WHOLE,
    num_steps: int = 8_000,
    optim: optax.GradientTransformation | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fits a prior to the codes of a guide that has been trained under another one.

    max over the prior of E_n E_q(z0 | x_n) log p(z0),  so that p -> q(z0) = E_n q(z0 | x_n)

    which is the best that a prior can do for the ELBO of a given guide (Hoffman & Johnson 2016),
    at no cost to its reconstructions: they do not change. No ODE is solved, so it takes seconds.

    Args:
        rng_key: a key.
        prior: over the guide's latent space; from then on the model's, `LatentODE(prior=prior)`.
        guide, params: as fitted.
        trajectories: those that they were fitted on.
        conditioning: what of them is encoded in each step. Default: a fifth of them in part. Their
            codes scatter about those of the whole ones, which keeps the prior from closing in on
            the few trajectories that it knows.
        num_steps: how many.
        optim: of the steps. Default: `optimizer(num_steps)`.
        progress: whether to show a progress bar.

    Returns:
        `params` with those of the prior in place of the old prior's.

    Raises:
        ValueError: if the prior is of the wrong kind or lives elsewhere than the guide's codes.
    """
    check_module("prior", prior)
    _, support = vector_distribution("prior", prior, batch_shape=())
    if support != guide.support:
        raise ValueError(
            f"prior must live where the guide's codes do, on {guide.support}; got one on {support}."
        )
    check_context(trajectories, guide.scaling)
    kept = {name: value for name, value in params.items() if name != "prior$params"}
    if taken := sorted(set(kept) & parameter_names(lambda: bind_prior(prior))):
        raise ValueError(
            f"prior must name parameters that nothing else has; got {taken}, which params hold."
        )

    def codes(trajectories: Trajectories, params: dict[str, Any]) -> None:
        p = bind_prior(prior)
        context_key, z0_key = jax.random.split(jnp.asarray(numpyro.prng_key()))
        with numpyro.handlers.block():
            q = posterior(guide, params, conditioning(context_key, trajectories))
        z0 = q.sample(z0_key)
        # A mean instead of a sum: the sum's gradient would always be clipped to one length, in
        # which the few codes that lie far out count for nothing, and their density goes to 0.
        count = len(trajectories)
        with numpyro.handlers.scale(scale=1 / count), numpyro.plate("trajectory", count):
            numpyro.sample("z0", p, obs=z0)

    optim = optimizer(num_steps) if optim is None else optim
    svi = SVI(codes, lambda *_: None, optim, Trace_ELBO())
    check_counts(num_steps=num_steps)
    state = jax.jit(svi.init)(rng_key, trajectories, params)
    with tqdm(total=num_steps, disable=not progress, unit="step") as bar:
        for after, losses in dispatches(svi, state, num_steps, trajectories, params):
            state = after
            bar.set_postfix_str(f"-log p(z0) {losses.mean():.2f}", refresh=False)
            bar.update(len(losses))
    return kept | svi.get_params(state)
