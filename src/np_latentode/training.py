"""How to train: an optimizer that was measured, and SVI with several steps a dispatch."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from jaxtyping import Array
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIRunResult
from tqdm import tqdm

from np_latentode.conditioning import Conditioning, random_context
from np_latentode.guide import AmortizedGuide
from np_latentode.modules import (
    Part,
    bind_prior,
    check_module,
    parameter_names,
    vector_distribution,
)
from np_latentode.plate import check_context
from np_latentode.prediction import posterior
from np_latentode.trajectories import Trajectories

__all__ = ["STEPS_AT_ONCE", "fit_prior", "optimizer", "run"]

STEPS_AT_ONCE = 100
MOSTLY_WHOLE = functools.partial(random_context, whole_share=0.8)


def optimizer(
    num_steps: int, *, learning_rate: float = 5e-3, weight_decay: float = 1e-2
) -> optax.GradientTransformation:
    """AdamW on clipped gradients, warmed up and then annealed to zero along a cosine.

    The ELBO is a sum over all data, so its gradient is practically always longer than the clip:
    what Adam sees is a direction, and no single batch can throw it off. Modules decay, and with
    them priors, towards the standard normal or uniform that they are where their parameters are 0;
    a parameter with a name of its own, as `noise_scale`, is not pulled anywhere.

    Args:
        num_steps: over which the learning rate is annealed: those of `SVI.run`.
        learning_rate: at its highest, after a fiftieth of the steps.
        weight_decay: of the networks, times the learning rate, a step.

    Raises:
        ValueError: if num_steps is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive; got {num_steps}.")
    warm_up = num_steps // 50
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, max(num_steps, 2))
    adam = optax.adamw(rate, weight_decay=weight_decay, mask=_networks)
    return optax.chain(optax.clip_by_global_norm(10.0), adam)


def run(
    svi: SVI,
    rng_key: Array,
    num_steps: int,
    *args: Any,
    progress: bool = True,
    steps_at_once: int = STEPS_AT_ONCE,
) -> tuple[SVIRunResult, float]:
    """What `svi.run(rng_key, num_steps, *args)` does, step for step, several steps a dispatch.

    `SVI.run` with its progress bar returns to Python after every step. Here that happens every
    `steps_at_once` steps, and the initial state is computed by one compiled program instead of
    operation by operation.

    Args:
        svi: any SVI.
        rng_key: a key.
        num_steps: how many steps.
        *args: of the model and the guide.
        progress: whether to show a progress bar with the loss.
        steps_at_once: between two looks at it.

    Returns:
        The result of `SVI.run`, and the time (`time.perf_counter`) when the first steps were done.

    Raises:
        ValueError: if a number is not positive.
    """
    for name, count in (("num_steps", num_steps), ("steps_at_once", steps_at_once)):
        if count < 1:
            raise ValueError(f"{name} must be positive; got {count}.")

    def steps(count: int) -> Any:
        return jax.jit(
            lambda state: svi.run(rng_key, count, *args, init_state=state, progress_bar=False)
        )

    whole, rest = divmod(num_steps, steps_at_once)
    counts = [(steps(steps_at_once), steps_at_once)] * whole + [(steps(rest), rest)] * (rest > 0)
    state, losses, first_done = jax.jit(svi.init)(rng_key, *args), [], 0.0
    with tqdm(total=num_steps, disable=not progress, unit="step") as bar:
        for take, count in counts:
            result = take(state)
            state = result.state
            losses.append(jax.block_until_ready(result.losses))
            first_done = first_done or time.perf_counter()
            bar.update(count)
            bar.set_postfix_str(f"loss {losses[-1].mean():.1f}", refresh=False)
    return SVIRunResult(svi.get_params(state), state, jnp.concatenate(losses)), first_done


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

    def codes() -> None:
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
    svi = SVI(codes, lambda: None, optim, Trace_ELBO())
    result, _ = run(svi, rng_key, num_steps, progress=progress)
    return kept | result.params


def _networks(params: dict[str, Any]) -> dict[str, bool]:
    # NumPyro names the parameters of a bound module so.
    return {name: name.endswith("$params") for name in params}
