"""Encoders: from a context to features, as flax nnx modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import interpax
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from np_latentode.data.checks import check_counts
from np_latentode.parts.modules import check_module, gru_cell, linear, mlp
from np_latentode.parts.solve import Solver, solve

__all__ = ["GRU", "ODERNN", "CovariateEncoder", "InputEncoder", "PathODE", "SummaryEncoder"]


class ODERNN(nnx.Module):
    """A recurrent network whose state follows an ODE between observations, run backwards in time.

    h_k' = h_{k+1} + the integral of f along h over the gap t_{k+1} - t_k
    h_k  = GRU(h_k', [x_k, m_k])                 (Rubanova et al. 2019, algorithm 1)

    It runs from the last observation to the first, and then to time 0, the time of z0. Each gap is
    one step of a diffrax method. Times without an observation are skipped, so that padding changes
    nothing. The features of an empty context are 0.

    Args:
        num_features: the dimension of x.
        hidden_dim: the dimension of h and of the features.
        width: the units of the hidden layer of f.
        method: the diffrax ODE solver, which takes one step per gap.

    Raises:
        ValueError: if the method is not a diffrax solver.
    """

    def __init__(
        self,
        num_features: int,
        *,
        hidden_dim: int = 16,
        width: int = 16,
        method: diffrax.AbstractSolver | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_features, self.hidden_dim, self.width = num_features, hidden_dim, width
        self.method = diffrax.Euler() if method is None else method
        if not isinstance(self.method, diffrax.AbstractSolver):
            raise ValueError(f"method must be a diffrax.AbstractSolver; got {method!r}.")
        self.field = mlp((hidden_dim, width, hidden_dim), rngs=rngs)
        self.cell = gru_cell(2 * num_features, hidden_dim, rngs=rngs)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
    ) -> Float[Array, "trajectory hidden"]:
        def update(h: Array, gap: Array, x: Array) -> Array:
            return self.cell(self._evolve(h, gap), x)[0]

        h, first = _read_backwards(update, times, values, mask, self.hidden_dim)
        return self._evolve(h, first)

    def _evolve(self, h: Array, gap: Array) -> Array:
        # Over a gap, dh/ds = gap * f(h) with s from 0 to 1: trajectories with different gaps share
        # one step.
        term = diffrax.ODETerm(lambda s, h, gap: gap[:, None] * self.field(h))
        start, end = jnp.zeros((), h.dtype), jnp.ones((), h.dtype)
        state = self.method.init(term, start, end, h, gap)
        return self.method.step(term, start, end, h, gap, state, made_jump=False)[0]


class PathODE(nnx.Module):
    """An ODE driven by linearly interpolated observations, run backwards in time.

    -dh/dt = tanh(MLP([h, x(t), n(t), t])),  h = 0 at the last observation,  features = h at time 0

    The path drives the ODE directly (Kidger et al. 2020, appendix C). It is solved backwards, as
    the encoder of Rubanova et al. 2019 is.

    - x(t) interpolates each feature between its own observations, and is constant beyond them.
    - n(t) is log(1 + number of the feature's observations from t on), interpolated likewise. It
      tells the MLP how many observations the path rests on, and whether a feature was observed at
      all.
    - The tanh bounds |h| by the time passed, so that no solve can diverge.

    The features of an empty context are 0.

    Args:
        num_features: the dimension of x.
        hidden_dim: the dimension of h and of the features.
        width: the units of the hidden layer of the MLP.
        solver: the settings of the ODE solve. Default: the midpoint method, with 16 steps over the
            span of the training data.

    Raises:
        ValueError: if the solver is not a Solver.
    """

    def __init__(
        self,
        num_features: int,
        *,
        hidden_dim: int = 24,
        width: int = 40,
        solver: Solver | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_features, self.hidden_dim, self.width = num_features, hidden_dim, width
        self.solver = Solver(diffrax.Midpoint(), dt0=0.3125) if solver is None else solver
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be a np_latentode.Solver; got {solver!r}.")
        self.field = mlp((hidden_dim + 2 * num_features + 1, width, hidden_dim), rngs=rngs)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
    ) -> Float[Array, "trajectory hidden"]:
        path = _interpolate(times, values, mask)
        last = jnp.max(times, axis=1, where=mask.any(-1), initial=0.0)

        def slope(passed: Array, h: Array) -> Array:
            t = last - passed
            return jnp.tanh(self.field(jnp.concatenate([h, path(t), t[:, None]], axis=-1)))

        h = jnp.zeros((len(times), self.hidden_dim), values.dtype)
        return solve(slope, h, last[:, None], solver=self.solver)[:, 0]


class GRU(nnx.Module):
    """A recurrent network with the gaps between observations as inputs, run backwards in time.

    h_k = GRU(h_{k+1}, [x_k, m_k, t_{k+1} - t_k])     ("RNN Delta_t" of Rubanova et al. 2019)

    It runs from the last observation to the first. A final update, with the gap as its only input,
    leads to time 0, the time of z0. Times without an observation are skipped, so that padding
    changes nothing. The features of an empty context are 0.

    Args:
        num_features: the dimension of x.
        hidden_dim: the dimension of h and of the features.
    """

    def __init__(self, num_features: int, *, hidden_dim: int = 16, rngs: nnx.Rngs):
        self.num_features, self.hidden_dim = num_features, hidden_dim
        self.cell = gru_cell(2 * num_features + 1, hidden_dim, rngs=rngs)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
    ) -> Float[Array, "trajectory hidden"]:
        def update(h: Array, gap: Array, x: Array) -> Array:
            return self.cell(h, jnp.concatenate([x, gap[:, None]], axis=-1))[0]

        h, first = _read_backwards(update, times, values, mask, self.hidden_dim)
        nothing = jnp.zeros((len(times), 2 * self.num_features), values.dtype)
        return jnp.where(mask.any((1, 2))[:, None], update(h, first, nothing), h)


class SummaryEncoder(nnx.Module):
    """Summary statistics of each feature, through one linear layer.

    features = W [x_last, mean, slope, x_first, seen, age, end, log(1 + times)] + b

    The statistics of a feature are

    - `x_last`: its last value,
    - `mean`, `slope`: its mean and its slope over time, both shrunk towards 0, as by a prior,
    - `x_first`: its value at the first time,
    - `seen`: whether it was observed,
    - `age`: the time from its last observation to `end`.

    Those of a trajectory are `end`, the time of its last observation, and `times`, the number of
    observed times. For an empty context, all statistics are 0.

    This encoder is meant for few and short trajectories. From those, a recurrent network cannot
    learn to carry the last value to z0.

    Args:
        num_features: the dimension of x.
        hidden_dim: the dimension of the features.
    """

    def __init__(self, num_features: int, *, hidden_dim: int = 32, rngs: nnx.Rngs):
        self.num_features, self.hidden_dim = num_features, hidden_dim
        self.layer = linear(6 * num_features + 2, hidden_dim, rngs=rngs)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
    ) -> Float[Array, "trajectory hidden"]:
        seen, count = mask.any(1), mask.sum(1)
        when = jnp.where(mask, times[..., None], 0.0)
        slot = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1])[:, None], 0), axis=1)[:, None]
        last, latest = (jnp.take_along_axis(a, slot, axis=1)[:, 0] for a in (values, when))
        mean = values.sum(1) / (count + 1)
        middle = when.sum(1) / jnp.maximum(count, 1)
        centred = jnp.where(mask, when - middle[:, None], 0.0)
        slope = (centred * (values - mean[:, None])).sum(1) / ((centred**2).sum(1) + 0.3)
        end = latest.max(1, keepdims=True)
        age = jnp.where(seen, end - latest, 0.0)
        visits = jnp.log1p(mask.any(-1).sum(1, keepdims=True))
        summary = [last, mean, slope, values[:, 0], seen.astype(values.dtype), age, end, visits]
        return self.layer(jnp.concatenate(summary, axis=-1))


class CovariateEncoder(nnx.Module):
    """The features of another encoder, and static covariates: [encoder(times, values, mask), s].

    Args:
        encoder: an nnx module, such as an `ODERNN`.
        num_covariates: the entries of s.

    Raises:
        ValueError: if the encoder is no module.
    """

    def __init__(self, encoder: nnx.Module, num_covariates: int):
        check_module("encoder", encoder)
        check_counts(num_covariates=num_covariates)
        self.encoder, self.num_covariates = encoder, num_covariates
        self.num_inputs = getattr(encoder, "num_inputs", 0)
        self.event_decay = getattr(encoder, "event_decay", 0.0)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
        *inputs_and_s: Array,
    ) -> Float[Array, "trajectory hidden"]:
        encoder: Any = self.encoder
        *inputs, s = inputs_and_s
        return jnp.concatenate([encoder(times, values, mask, *inputs), s], axis=-1)


class InputEncoder(nnx.Module):
    """Another encoder, which reads inputs at the observed times as further features.

    features = encoder(times, [x, u], [m, observed])

    At each observed time, u has the constant and linear inputs; and of each event the amount that
    was given before, and the time since it was last given (`Inputs.read`).

    Args:
        encoder: an nnx module of that many features more, such as
            `ODERNN(num_features + num_inputs)`.
        num_inputs: the entries of u: one for each constant or linear input, two for each event.

    Raises:
        ValueError: if the encoder is no module.
    """

    def __init__(self, encoder: nnx.Module, num_inputs: int):
        check_module("encoder", encoder)
        check_counts(num_inputs=num_inputs)
        self.encoder, self.num_inputs = encoder, num_inputs

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
        u: Float[Array, "trajectory time entry"],
    ) -> Float[Array, "trajectory hidden"]:
        encoder: Any = self.encoder
        seen = jnp.broadcast_to(mask.any(-1, keepdims=True), u.shape)
        # Nothing can depend on what is not observed.
        read = jnp.concatenate([values, jnp.where(seen, u, 0.0)], axis=-1)
        return encoder(times, read, jnp.concatenate([mask, seen], axis=-1))


def _read_backwards(
    update: Callable[[Array, Array, Array], Array],
    times: Array,
    values: Array,
    mask: Array,
    hidden_dim: int,
) -> tuple[Array, Array]:
    """Repeats h <- update(h, gap to the later observation, [x, m]), backwards over observed times.

    Returns:
        h after the first observed time; and that time, or 0 without observations.
    """
    observed = mask.any(-1)
    inputs = jnp.concatenate([values, mask.astype(values.dtype)], axis=-1)

    def step_back(carry: tuple[Array, Array], at_time: tuple[Array, Array, Array]):
        h, later = carry
        time, x, seen = at_time
        h = jnp.where(seen[:, None], update(h, later - time, x), h)
        return (h, jnp.where(seen, time, later)), None

    # It starts at the last observation, so that the first gap is zero.
    last = jnp.max(times, axis=1, where=observed, initial=0.0)
    h = jnp.zeros((len(times), hidden_dim), values.dtype)
    by_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (times, inputs, observed))
    return jax.lax.scan(step_back, (h, last), by_time, reverse=True)[0]


def _interpolate(times: Array, values: Array, mask: Array) -> Callable[[Array], Array]:
    """The path t -> [x, n] through the observations; t is one time per trajectory."""

    def knots(times: Array, values: Array, mask: Array) -> tuple[Array, Array]:
        # An unobserved slot repeats the observed slot before it, or else the first observed one.
        slot = jax.lax.cummax(jnp.where(mask, jnp.arange(len(mask)), jnp.argmax(mask)))
        count = jnp.cumsum(mask[::-1], dtype=values.dtype)[::-1]
        known = jnp.stack([values, jnp.log1p(count)], axis=-1)[slot]
        # The path gets a flat unit of time at both ends, which is extrapolated. So no query lies
        # between two knots of the same time, where slopes and their gradients would be 0 / 0.
        knots = jnp.pad(times[slot], 1, mode="edge").at[0].add(-1.0).at[-1].add(1.0)
        return knots, jnp.pad(known, ((1, 1), (0, 0)), mode="edge")

    by_feature = jax.vmap(knots, in_axes=(None, 1, 1))
    at, known = jax.vmap(by_feature)(times, values, mask)
    read = functools.partial(interpax.interp1d, method="linear", extrap=True)
    read = jax.vmap(jax.vmap(read, in_axes=(None, 0, 0)))
    return lambda t: read(t, at, known).reshape(len(t), -1)
