"""A fit and its predictions as a DataTree for ArviZ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jaxtyping import Array

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Numbers, Trajectories
from np_latentode.forecasts.prediction import (
    check_params,
    decode,
    log_likelihood,
    observed_times,
    posterior,
    prior,
)
from np_latentode.inference.nuts import check_exact
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data, prediction_times

__all__ = ["to_datatree"]

PER_OBSERVATION = ("posterior_predictive", "prior_predictive", "log_likelihood", "observed_data")


def to_datatree(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    trajectories: Trajectories,
    *,
    times: Numbers | None = None,
    exact: xarray.DataTree | None = None,
    num_samples: int = 200,
    feature_names: Sequence[Any] | None = None,
    trajectory_names: Sequence[Any] | None = None,
) -> xarray.DataTree:
    """What ArviZ needs to know of a fit, for trajectories encoded as a whole.

    Groups: `posterior` (z0 from the guide) and `prior`; `posterior_predictive` and
    `prior_predictive` (x and x_mean), `log_likelihood` and `observed_data` (x), which have a
    dimension `observation`, one entry for each number that was observed, with the coordinates
    `trajectory`, `time` and `feature`; with `times`, `predictions` of x and x_mean at all of them,
    and `predictions_constant_data`; `constant_data`, parameters with a name of their own, such as
    `noise_scale`. All but z0 is in original units.

    `az.loo` of it leaves out one observation at a time, and `elpd` one trajectory. What `az.loo`
    and `az.plot_loo_pit` say holds for draws from the posterior itself: where the guide is narrow,
    and Pareto k of `importance` large, hand over `exact`.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: the data to encode and to predict.
        times: where to predict, too: (time,) for all, or (trajectory, time).
        exact: what `exact_posterior` drew for these trajectories, which then is the posterior, and
            `sample_stats`. Default: num_samples draws from the guide.
        num_samples: draws from the prior, and from the guide.
        feature_names: coordinates of the dimension `feature`. Default: `trajectories.names`.
        trajectory_names: coordinates of the dimension `trajectory`. Default: likewise.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples)
    check_data(model, trajectories)
    check_params(params, model, guide)
    names = trajectories.names
    features = _names("feature_names", feature_names, names.features, "features")
    ids = _names("trajectory_names", trajectory_names, names.ids, "trajectories")
    at = None
    if times is not None:
        at = prediction_times(times, len(trajectories), model.scaling, name="times")
    z0_key, prior_key, x_key, before_key, future_key = jax.random.split(rng_key, 5)
    if exact is None:
        z0 = posterior(guide, params, trajectories).sample(z0_key, (1, num_samples))
    else:
        z0 = jnp.asarray(check_exact(exact, trajectories)["posterior"]["z0"].values)
    shape = (1, num_samples, len(trajectories))
    before = jnp.asarray(prior(model, params).sample(prior_key, shape))
    mask = np.asarray(trajectories.mask)
    seen = observed_times(model, trajectories)

    def predict(rng_key: Array, z0: Array, times: Array) -> dict[str, np.ndarray]:
        draws = decode(rng_key, model, params, jnp.concatenate(z0), times)
        return {name: _chains(draws[name], len(z0)) for name in ("x", "x_mean")}

    def observed(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[:, :, mask] for name, values in draws.items()}

    log_prob = log_likelihood(model, params, jnp.concatenate(z0), trajectories)
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {"z0": np.asarray(z0)},
        "prior": {"z0": np.asarray(before)},
        "posterior_predictive": observed(predict(x_key, z0, seen)),
        "prior_predictive": observed(predict(before_key, before, seen)),
        "log_likelihood": observed({"x": _chains(log_prob, len(z0))}),
        "observed_data": {"x": np.asarray(trajectories.values)[mask]},
        "constant_data": {k: np.asarray(v) for k, v in params.items() if not k.endswith("$params")},
    }
    shared, per_time = {}, ["trajectory", "time", "feature"]
    if at is not None:
        groups["predictions"] = predict(future_key, z0, at)
        groups["predictions_constant_data"] = {"times": np.asarray(at)}
        if np.ndim(np.asarray(times)) == 1:
            shared["time"] = np.asarray(at[0])
    tree = arviz_base.from_dict(
        groups,
        coords={"feature": features, "trajectory": ids},
        dims={
            "z0": ["trajectory", "latent"],
            "x": ["observation"],
            "x_mean": ["observation"],
            **{
                k: ["feature"]
                for k, v in groups["constant_data"].items()
                if v.shape == (len(features),)
            },
        },
        pred_coords={"feature": features, "trajectory": ids, **shared},
        pred_dims={"x": per_time, "x_mean": per_time, "times": per_time[:2]},
    )
    of, _, j = np.nonzero(mask)
    where = {
        "trajectory": np.asarray(ids)[of],
        "time": np.broadcast_to(np.asarray(trajectories.times)[..., None], mask.shape)[mask],
        "feature": np.asarray(features)[j],
    }
    for group in PER_OBSERVATION:
        coords = {name: ("observation", values) for name, values in where.items()}
        tree[group] = xarray.DataTree(tree[group].to_dataset().assign_coords(coords))
    if exact is not None and "sample_stats" in exact.children:
        stats = exact["sample_stats"].to_dataset().assign_coords(trajectory=ids)
        tree["sample_stats"] = xarray.DataTree(stats)
    return tree


def _chains(draws: Array, num_chains: int) -> np.ndarray:
    return np.asarray(draws).reshape(num_chains, -1, *draws.shape[1:])


def _names(name: str, given: Sequence[Any] | None, default: Sequence[Any], of: str) -> list[Any]:
    names = list(default if given is None else given)
    if len(names) != len(default) or len(set(names)) != len(names):
        raise ValueError(f"{name} must name {len(default)} {of}, each its own; got {names}.")
    return names
