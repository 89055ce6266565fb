"""A prior fitted to the aggregate posterior, q(z0) = E_n q(z0 | x_n)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from jaxtyping import Array
from numpyro.infer import SVI
from tqdm import tqdm

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior
from np_latentode.parts.modules import (
    Part,
    bind_prior,
    check_module,
    parameter_names,
    vector_distribution,
)
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.plate import check_context
from np_latentode.training.optimizer import optimizer
from np_latentode.training.steps import dispatches, steps_of

__all__ = ["fit_prior"]

MOSTLY_WHOLE = functools.partial(random_context, whole_share=0.8)


def fit_prior(
    rng_key: Array,
    prior: Part,
    fitted: Fitted,
    trajectories: Trajectories,
    *,
    conditioning: Conditioning = MOSTLY_WHOLE,
    num_steps: int = 8_000,
    optim: optax.GradientTransformation | None = None,
    progress: bool = True,
) -> Fitted:
    """Fits a new prior to the codes of a trained guide: the z0 that it draws for the data.

    max over the prior of E_n E_q(z0 | x_n) log p(z0),  so that p -> q(z0) = E_n q(z0 | x_n)

    For a given guide, this prior has the highest ELBO (Hoffman & Johnson 2016). Reconstructions and
    forecasts do not change. No ODE is solved, so it takes seconds.

    Args:
        rng_key: a key.
        prior: the new prior, on the same latent space.
        fitted: the fit with the old prior.
        trajectories: its training data.
        conditioning: picks what the guide sees of each trajectory in a step. Default: four fifths
            of the trajectories whole, and parts of the others. Codes of parts scatter more, so the
            prior does not shrink to the codes of a few trajectories.
        num_steps: the number of steps.
        optim: an optimizer of optax. Default: `optimizer(num_steps)`.
        progress: whether to show a progress bar.

    Returns:
        The fit with the new prior in its model; all other parameters are the same.

    Raises:
        ValueError: if the prior is no prior, has another support than the codes, or names a
            parameter that the fit has already.
    """
    check_fitted(fitted)
    check_counts(num_steps=num_steps)
    kept = _without_prior(fitted)
    _check_prior(prior, fitted.guide, kept)
    trajectories = check_context(trajectories, fitted.guide.scaling)

    def codes(trajectories: Trajectories, fitted: Fitted) -> None:
        p = bind_prior(prior)
        context_key, z0_key = jax.random.split(jnp.asarray(numpyro.prng_key()))
        with numpyro.handlers.block():
            q = posterior(fitted, conditioning(context_key, trajectories))
        z0 = q.sample(z0_key)
        # A mean, not a sum. The gradient of a sum would always be clipped to the same length. The
        # few codes far out would then hardly count, and their density would go to 0.
        count = len(trajectories)
        with numpyro.handlers.scale(scale=1 / count), numpyro.plate("trajectory", count):
            numpyro.sample("z0", p, obs=z0)

    optim = optimizer(num_steps) if optim is None else optim
    svi = SVI(codes, lambda *_: None, optim, OrderedELBO())
    take, state = steps_of(svi), jax.jit(svi.init)(rng_key, trajectories, fitted)
    with tqdm(total=num_steps, disable=not progress, unit="step") as bar:
        for after, losses in dispatches(take, state, num_steps, trajectories, fitted):
            state = after
            bar.set_postfix_str(f"-log p(z0) {losses.mean():.2f}", refresh=False)
            bar.update(len(losses))
    return Fitted(fitted.model.with_prior(prior), fitted.guide, kept | svi.get_params(state))


def _check_prior(prior: Part, guide: AmortizedGuide, kept: dict[str, Any]) -> None:
    check_module("prior", prior)
    _, support = vector_distribution("prior", prior, batch_shape=())
    if support != guide.support:
        raise ValueError(
            f"prior must have the support of the guide's codes, {guide.support}; got one on "
            f"{support}."
        )
    if taken := kept.keys() & parameter_names(lambda: bind_prior(prior)):
        raise ValueError(
            f"prior must give its parameters names of their own; got {sorted(taken)}, which the "
            "fit has already."
        )


def _without_prior(fitted: Fitted) -> dict[str, Any]:
    """The parameters of everything but the old prior."""
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as sites:
        bind_prior(fitted.model.prior)
    return {name: value for name, value in fitted.params.items() if name not in sites}
