"""How to train: the optimizer that won the comparisons in `benchmarks/defaults.py`."""

from __future__ import annotations

from typing import Any

import optax

__all__ = ["optimizer"]


def optimizer(
    num_steps: int, *, learning_rate: float = 1e-2, weight_decay: float = 1e-2
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


def _networks(params: dict[str, Any]) -> dict[str, bool]:
    # NumPyro names the parameters of a bound module so.
    return {name: name.endswith("$params") for name in params}
