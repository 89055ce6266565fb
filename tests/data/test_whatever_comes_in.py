"""Any input gives a finite result or a clear error, and no row is lost."""

from decimal import Decimal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from np_latentode import (
    MLPDynamics,
    Scaling,
    Solver,
    Trajectories,
    fit,
    forecast,
    latent_ode,
    log_predictive,
    posterior,
    random_context,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

LENGTH = 5
RNGS = nnx.Rngs(0)


def small(train, **options):
    """A model and guide that compile in a few seconds, whatever the encoder."""
    return latent_ode(
        train,
        latent_dim=2,
        dynamics=MLPDynamics(2, width=4, rngs=nnx.Rngs(0)),
        solver=Solver(diffrax.Heun(), dt0=1.25, adjoint=diffrax.DirectAdjoint()),
        **options,
        rngs=nnx.Rngs(0),
    )


def numbers(scale):
    """Entries of a column: numbers of one size and of any type, zeros, and missing values."""
    sized = st.floats(-1, 1, width=32).map(lambda x: float(np.float32(x * scale)))
    return st.one_of(
        st.none(),
        st.just(float("nan")),
        st.just(0.0),
        sized,
        sized.map(np.float32),
        sized.map(np.float64),
        sized.map(lambda x: Decimal(repr(x))),
        st.integers(-3, 3),
    )


@st.composite
def rows(draw):
    """Rows of a ragged table. An id may have no observation, a single one, or a single time."""
    scale, unit = (10.0 ** draw(st.integers(-9, 9)) for _ in range(2))
    start = draw(st.sampled_from([0.0, 1.0, -3.0])) * unit
    constant = draw(st.booleans())
    what = st.just(scale) if constant else numbers(scale)
    when = st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0])
    table = []
    for who in range(3):
        for _ in range(draw(st.integers(0 if table else 1, LENGTH))):
            table.append((who, start + unit * draw(when), draw(what), draw(what)))
    return draw(st.permutations(table))


@pytest.fixture(scope="module")
def predict():
    """A forecast in scaled units for 3 trajectories with 5 times; it is compiled once."""
    some = Trajectories(np.tile(np.linspace(0, 5, LENGTH), (3, 1)), np.ones((3, LENGTH, 2)))
    model, guide = small(some, scaling=Scaling.identity(2))
    fitted = fit(jax.random.key(0), model, guide, some, num_steps=1, progress=False)

    @jax.jit
    def both(context):
        q = posterior(fitted, context)
        z0 = q.sample(jax.random.key(1), (4,))
        return q.mean, log_predictive(fitted, z0, context, context)

    return both


@given(rows())
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_any_table_is_scaled_and_forecast_in_finite_numbers_or_refused(predict, table):
    frame = pd.DataFrame(table, columns=["who", "when", "a", "b"])
    measured = pd.DataFrame({c: pd.to_numeric(frame[c], errors="coerce") for c in "ab"})
    try:
        data = Trajectories.from_dataframe(frame, id="who", time="when", values=["a", "b"])
        scaling = Scaling.fit(data).less(data.offset)
    except ValueError as error:
        # A feature was never observed.
        if "of every feature; got none of" in str(error) and measured.isna().all().any():
            return
        raise
    assert len(data) == frame["who"].nunique()
    assert int(data.mask.sum()) == int(measured.notna().to_numpy().sum())
    assert int(data.observed.sum()) == int(measured.notna().any(axis=1).sum())
    times, values = scaling.scale_times(data.times), scaling.scale_values(data.values)
    seen = np.asarray(data.mask)
    assert np.abs(np.asarray(values)[seen]).max() < 10
    again = np.asarray(scaling.unscale_values(values))
    size = np.abs(np.asarray(data.values)).max()
    np.testing.assert_allclose(again[seen], np.asarray(data.values)[seen], atol=1e-5 * size + 1e-37)
    within = np.asarray(times)[np.asarray(data.observed)]
    assert within.min() > -1e-3
    assert within.max() < 5.001
    if len(data) == 3:
        pad = ((0, 0), (0, LENGTH - data.times.shape[1]))
        context = Trajectories(
            np.pad(np.maximum(np.asarray(times), 0), pad, mode="edge"),
            np.pad(np.where(seen, values, 0), (*pad, (0, 0))),
            np.pad(seen, (*pad, (0, 0))),
        )
        for result in predict(context):
            assert np.isfinite(result).all()


def trained(times, values):
    data = Trajectories(times, values)
    model, guide = small(data)
    fitted = fit(
        jax.random.key(0),
        model,
        guide,
        data,
        num_steps=20,
        conditioning=random_context,
        progress=False,
    )
    first, last = float(data.times.min()), float(data.times.max())
    later = first + (last - first) * np.linspace(0.5, 1.5, 4)
    draws = forecast(jax.random.key(1), fitted, data, later, num_samples=8)
    return data, fitted, np.asarray(draws["x"], float)


@pytest.fixture(scope="module")
def plain():
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 64, (4, 6)) / 8, axis=1)
    times[:, 0] = 0
    values = rng.normal(size=(4, 6, 2)).astype(np.float32)
    values[rng.uniform(size=values.shape) < 0.3] = np.nan
    return times, values, trained(times, values)[2]


@pytest.mark.parametrize(
    ("of_times", "of_values"),
    [(1e9, 1e-9), (1e-9, 1e9)],
)
@pytest.mark.slow
def test_forecasts_are_equivariant_to_units(plain, of_times, of_values):
    """If times are multiplied by a and values by b, forecasts at a t are b times those at t."""
    times, values, expected = plain
    _, fitted, x = trained(of_times * times, of_values * values)
    np.testing.assert_allclose(x / of_values, expected, rtol=2e-3, atol=2e-3)
    assert np.isfinite(fitted.history.losses).all()


@pytest.mark.parametrize(
    ("times", "values"),
    [
        ([[3.0]], [[[2.0, -1.0]]]),
        ([[0.0, 1e-9], [1e9, 1e9]], [[[1e-9, 1e9], [0, 0]], [[np.nan, np.nan], [1e-9, 1e9]]]),
    ],
    ids=["a single point", "all sizes at once"],
)
@pytest.mark.slow
def test_strange_data_are_trained_on_in_finite_numbers(times, values):
    _, fitted, x = trained(times, values)
    assert np.isfinite(fitted.history.losses).all()
    assert np.isfinite(x).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))
