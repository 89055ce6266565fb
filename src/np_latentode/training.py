"""How to train: an optimizer that was measured, and SVI with several steps a dispatch."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from numpyro.infer import SVI
from numpyro.infer.svi import SVIRunResult
from tqdm import tqdm

__all__ = ["STEPS_AT_ONCE", "optimizer", "run"]

STEPS_AT_ONCE = 100


def optimizer(
    num_steps: int, *, learning_rate: float = 5e-3, weight_decay: float = 1e-2
) -> optax.GradientTransformation:
    """AdamW on clipped gradients, warmed up and then annealed to zero along a cosine.

    The ELBO is a sum over all data, so its gradient is practically always longer than the clip:
    what Adam sees is a direction, and no single batch can throw it off. Only weights of networks
    decay: a parameter with a meaning, such as `noise_scale`, is not pulled anywhere.

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


def _networks(params: dict[str, Any]) -> dict[str, bool]:
    # NumPyro names the parameters of a bound module so.
    return {name: name.endswith("$params") for name in params}
