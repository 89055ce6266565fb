"""Signals: forecasts of paths without white noise, at all times together."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from np_latentode.data.numbers import Numbers
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized
from np_latentode.forecasts.densities import DRAWS_AT_ONCE
from np_latentode.forecasts.prediction import draw_forecast, mean_and_x, warn_of_inputs
from np_latentode.parts.emissions import sample_signal
from np_latentode.programs.ensemble import Ensemble
from np_latentode.programs.fitted import Fitted

__all__ = ["signals", "with_signal"]


def signals(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: Numbers,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
    draws_at_once: int = DRAWS_AT_ONCE,
) -> dict[str, Any]:
    """Draws as those of `forecast`, and of the signal: the path of each without white noise.

    x(t) = signal(t) + e(t),  signal(t) = decoder(z(t)) + r(t),  z0 ~ q(z0 | context),
    r ~ the residual process given z0 and the context, at all times together

    `x_mean` of a forecast is the mean of the signal given z0, and so narrower: it leads from the
    last residual back to the path of the ODE, while the residual goes on to wander. Under a
    likelihood without a residual process, the two are the same: the mean of a count, or the
    probability of a bit.

    With the bands of an ensemble, the signal is stretched about its median by the width w that
    stretches x. As x - median is the sum of the signal's deviation and the noise, this is what
    stretches both of them by w. So the stretched x is the stretched signal with noise of w times
    its scale, and a forecast that was too narrow does not cross too rarely.

    Args:
        rng_key, fitted, context, times, inference, num_samples, draws_at_once: as in `forecast`.

    Returns:
        What `forecast` returns, and `signal` (draw, trajectory, time, feature) in the units of the
        table. `signal` and `x` of one draw share z0, and each has a residual of its own.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    draws = draw_forecast(
        rng_key,
        fitted,
        context,
        times,
        inference=inference,
        num_samples=num_samples,
        draws_at_once=draws_at_once,
        reading=with_signal,
    )
    warn_of_inputs(fitted, context, times)
    return draws


def with_signal(sites: dict[str, Any], rng_key: Array) -> dict[str, Array]:
    """The reading that keeps the signal as well; see `draw_forecast`."""
    # Before to_event, which has lost what the distribution knows of its parts.
    x = sites["x"]["fn"].base_dist
    signal = sample_signal(x, jax.random.fold_in(rng_key, 1))
    return {**mean_and_x(sites, rng_key), "signal": signal}
