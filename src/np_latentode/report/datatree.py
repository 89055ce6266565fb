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
from np_latentode.data.given import table_values
from np_latentode.data.numbers import Numbers
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior, prior
from np_latentode.forecasts.densities import log_likelihood, observed_times
from np_latentode.forecasts.prediction import as_measured, draw_x, in_table_units
from np_latentode.inference.convergence import check_exact
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data, prediction_times

__all__ = ["to_datatree"]

PER_OBSERVATION = ("posterior_predictive", "prior_predictive", "log_likelihood", "observed_data")


def to_datatree(
    rng_key: Array,
    fitted: Fitted,
    trajectories: Trajectories,
    *,
    times: Numbers | None = None,
    exact: xarray.DataTree | None = None,
    num_samples: int = 200,
    feature_names: Sequence[Any] | None = None,
    trajectory_names: Sequence[Any] | None = None,
) -> xarray.DataTree:
    """A fit and its predictions for ArviZ; each trajectory is encoded as a whole.

    The groups are

    - `posterior` (z0 from the guide) and `prior`,
    - `posterior_predictive` and `prior_predictive` (x and x_mean), `log_likelihood` and
      `observed_data` (x). They have a dimension `observation`, one entry per observed number, with
      the coordinates `trajectory`, `time` and `feature`,
    - with `times`: `predictions` of x and x_mean at all of them, and `predictions_constant_data`,
    - `constant_data`: the parameters outside the networks, such as `noise_scale`; and if there are
      some, `static` (trajectory, covariate), categories as their places among the levels; `inputs`
      (trajectory, row, input) and `input_times` (trajectory, row), standard errors `error`, and
      `lower` and `upper` of limits (trajectory, slot, feature), all as they were given.

    Everything but z0 is in original units. Of limits, such as <0.5, `observed_data` has the
    stand-in, and `log_likelihood` the log probability. Under a likelihood with a residual process,
    `posterior_predictive` is drawn given the residuals of the same observations, so that it lies
    close to them.

    `az.loo` leaves out one observation at a time, `elpd` one trajectory. `az.loo` and
    `az.plot_loo_pit` need draws from the posterior itself. Pass `exact` if the guide is too narrow,
    that is, if Pareto k of `importance` is large. Under a likelihood with a residual process they
    leave nothing out: each term is given the earlier observations, and later terms know it.
    Limits come after all other observations of their trajectory.

    Args:
        rng_key: a key.
        fitted: the fit.
        trajectories: the data to encode and to predict.
        times: further times to predict, (time,) for all, or (trajectory, time).
        exact: the result of `exact_posterior` for these trajectories. Its draws are then the
            posterior, and its `sample_stats` are kept. Default: num_samples draws from the guide.
        num_samples: the number of draws from the prior and from the guide.
        feature_names: coordinates of the dimension `feature`. Default: `trajectories.names`.
        trajectory_names: coordinates of the dimension `trajectory`. Default: `trajectories.names`.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    trajectories, _ = check_data(fitted.model, trajectories)
    names = trajectories.names
    features = _names("feature_names", feature_names, names.features, "features")
    ids = _names("trajectory_names", trajectory_names, names.ids, "trajectories")
    at = None
    if times is not None:
        of = trajectories.offset
        at = prediction_times(
            times, len(trajectories), fitted.model.scaling, offset=of, name="times"
        )
    z0_key, prior_key, *keys = jax.random.split(rng_key, 5)
    if exact is None:
        z0 = posterior(fitted, trajectories).sample(z0_key, (1, num_samples))
    else:
        z0 = check_exact(exact, trajectories)["posterior"]["z0"].values
    before = prior(fitted).sample(prior_key, (1, num_samples, len(trajectories)))
    groups = _groups(keys, fitted, trajectories, jnp.asarray(z0), jnp.asarray(before), at)
    if times is not None and at is not None:
        asked_at = np.broadcast_to(np.asarray(times, float), at.shape)
        groups["predictions_constant_data"] = {"times": asked_at}
    shared = {} if times is None or np.ndim(times) != 1 else {"time": np.asarray(times, float)}
    coords = {"feature": features, "trajectory": ids}
    coords |= {"covariate": [*names.static], "input": [*names.inputs]}
    tree = _labelled(groups, coords, shared)
    _place_observations(tree, trajectories, features, ids)
    if exact is not None and "sample_stats" in exact.children:
        stats = exact["sample_stats"].to_dataset().assign_coords(trajectory=ids)
        tree["sample_stats"] = xarray.DataTree(stats)
    return tree


def _groups(
    keys: Sequence[Array],
    fitted: Fitted,
    trajectories: Trajectories,
    z0: Array,
    before: Array,
    at: Array | None,
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each group, from z0 and from `before`, draws of the prior."""
    x_key, before_key, future_key = keys
    mask = np.asarray(trajectories.mask)
    seen, sds = observed_times(fitted.model, trajectories), trajectories.error

    def predict(
        rng_key: Array, z0: Array, times: Array, context: Trajectories | None, error: Array | None
    ) -> dict[str, np.ndarray]:
        offset, codes = trajectories.offset, jnp.concatenate(z0)
        options: dict[str, Any] = dict(context=context, static=trajectories.static)
        options |= dict(inputs=trajectories.inputs)
        draws = draw_x(rng_key, fitted, codes, times, offset, **options)
        draws["x"] = as_measured(rng_key, draws["x"], error)
        draws = in_table_units(draws, trajectories.offset, trajectories.labels)
        return {name: _chains(draws[name], len(z0)) for name in ("x", "x_mean")}

    def observed(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[:, :, mask] for name, values in draws.items()}

    names, modelled = trajectories.names, trajectories.given.values
    log_prob = log_likelihood(fitted, jnp.concatenate(z0), trajectories)
    # Of x itself: the density of a logarithm, divided by x. A probability stays.
    logged = names.logged & ~trajectories.limited
    log_prob = np.asarray(log_prob) - np.where(logged, modelled, 0.0)
    own = {name: value for name, value in fitted.params.items() if not name.endswith("$params")}
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {"z0": np.asarray(z0)},
        "prior": {"z0": np.asarray(before)},
        "posterior_predictive": observed(predict(x_key, z0, seen, trajectories, sds)),
        "prior_predictive": observed(predict(before_key, before, seen, None, sds)),
        "log_likelihood": observed({"x": _chains(log_prob, len(z0))}),
        "observed_data": {"x": table_values(trajectories.given, names)[mask]},
        "constant_data": {name: np.asarray(value) for name, value in own.items()}
        | _known(trajectories),
    }
    if at is not None:
        groups["predictions"] = predict(future_key, z0, at, trajectories, None)
    return groups


def _known(trajectories: Trajectories) -> dict[str, np.ndarray]:
    """Static covariates, inputs, standard errors and limits, as they were given."""
    static, inputs = trajectories.given_static, trajectories.inputs
    found, given = {} if static is None else {"static": static}, trajectories.given
    if given.error is not None:
        found |= {"error": given.error}
    if given.limits is not None:
        found |= {"lower": given.limits.lower, "upper": given.limits.upper}
    if inputs is not None:
        found |= {"inputs": inputs.given_values, "input_times": inputs.given_times}
    return found


def _labelled(
    groups: dict[str, dict[str, np.ndarray]],
    coords: dict[str, list[Any]],
    shared: dict[str, np.ndarray],
) -> xarray.DataTree:
    """The tree with its dimensions named; `shared` holds the time axis, if it is common to all."""
    num_features = len(coords["feature"])
    of_features = {
        name: ["feature"]
        for name, value in groups["constant_data"].items()
        if value.shape == (num_features,)
    }
    per_time = ["trajectory", "time", "feature"]
    return arviz_base.from_dict(
        groups,
        coords=coords,
        dims={
            "z0": ["trajectory", "latent"],
            "x": ["observation"],
            "x_mean": ["observation"],
            "static": ["trajectory", "covariate"],
            "inputs": ["trajectory", "row", "input"],
            "input_times": ["trajectory", "row"],
            **{name: ["trajectory", "slot", "feature"] for name in ("error", "lower", "upper")},
            **of_features,
        },
        pred_coords={**coords, **shared},
        pred_dims={"x": per_time, "x_mean": per_time, "times": per_time[:2]},
    )


def _place_observations(
    tree: xarray.DataTree, trajectories: Trajectories, features: list[Any], ids: list[Any]
) -> None:
    """Adds the coordinates of each observation: trajectory, time and feature."""
    mask = np.asarray(trajectories.mask)
    of, _, j = np.nonzero(mask)
    where = {
        "trajectory": np.asarray(ids)[of],
        "time": np.broadcast_to(trajectories.given.times[..., None], mask.shape)[mask],
        "feature": np.asarray(features)[j],
    }
    coords = {name: ("observation", values) for name, values in where.items()}
    for group in PER_OBSERVATION:
        tree[group] = xarray.DataTree(tree[group].to_dataset().assign_coords(coords))


def _chains(draws: Array | np.ndarray, num_chains: int) -> np.ndarray:
    return np.asarray(draws).reshape(num_chains, -1, *draws.shape[1:])


def _names(name: str, given: Sequence[Any] | None, default: Sequence[Any], of: str) -> list[Any]:
    names = list(default if given is None else given)
    if len(names) != len(default) or len(set(names)) != len(names):
        raise ValueError(f"{name} must be {len(default)} different names of {of}; got {names}.")
    return names
