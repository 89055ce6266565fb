"""The default optimizer of SVI, the winner of `benchmarks/defaults.py`."""

from __future__ import annotations

from typing import Any

import optax

__all__ = ["optimizer"]


def optimizer(
    num_steps: int, *, learning_rate: float = 5e-3, weight_decay: float = 1e-2
) -> optax.GradientTransformation:
    """AdamW on clipped gradients; the learning rate warms up, then falls to zero along a cosine.

    The ELBO is a sum over all data, so its gradient is almost always longer than the clip. Adam
    then sees a direction only, and no single batch can throw it off.

    The weights of modules decay towards 0. With weights of 0, a prior of this library is standard
    normal or uniform. Parameters with a name of their own, such as `noise_scale`, do not decay.

    After `num_steps` steps the learning rate is zero. To go on, `SVI.run(init_state=...)` with the
    same optimizer would move nothing; use `fit(..., start=fitted)`, or NumPyro's
    `SVI.init(..., init_params=params)` with a new optimizer.

    Args:
        num_steps: the number of steps that will be taken.
        learning_rate: the highest learning rate, reached after one fiftieth of the steps.
        weight_decay: each step shrinks the weights by this share, times the learning rate.

    Raises:
        ValueError: if num_steps is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive; got {num_steps}.")
    warm_up = num_steps // 50
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, max(num_steps, 2))
    # On one long vector: a few operations for each of many arrays take long to compile.
    adam = optax.flatten(optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam()))
    decay = optax.add_decayed_weights(weight_decay, _networks)
    return optax.chain(adam, decay, optax.scale_by_learning_rate(rate))


def _networks(params: dict[str, Any]) -> dict[str, bool]:
    # NumPyro ends the names of a bound module's parameters so.
    return {name: name.endswith("$params") for name in params}
