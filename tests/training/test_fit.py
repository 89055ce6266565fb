"""`fit` takes SVI's own steps, keeps the best of them, and loses none."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import interrupted_at
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import (
    MLPDynamics,
    Solver,
    datasets,
    fit,
    latent_ode,
    log_predictive,
    optimizer,
    posterior,
    random_context,
)
from np_latentode.training import progress, steps, validation

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def spirals():
    return datasets.spirals(jax.random.key(0), num_trajectories=14)


@pytest.fixture(scope="module")
def pair(spirals):
    return small_pair(spirals[:10])


def small_pair(train, width=4, seed=0):
    """A pair that compiles in a second or two."""
    rngs = nnx.Rngs(seed)
    return latent_ode(
        train,
        latent_dim=2,
        dynamics=MLPDynamics(2, width=width, rngs=rngs),
        encoder=MeanEncoder(2, 4, rngs=rngs),
        solver=Solver(diffrax.Euler(), dt0=1.25, adjoint=diffrax.DirectAdjoint()),
        rngs=rngs,
    )


class MeanEncoder(nnx.Linear):
    def __call__(self, times, values, mask):
        return super().__call__(values.sum(1) / (1 + mask.sum(1)))


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(steps, "STEPS_AT_ONCE", 5)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_fit_takes_the_steps_of_svi_with_the_kl_weight_of_each(pair, spirals):
    key, train = jax.random.key(3), spirals[:10]
    svi = SVI(*pair, optimizer(12), Trace_ELBO(), batch_size=4, conditioning=random_context)
    state, expected = svi.init(key, train), []
    update = jax.jit(svi.update)
    for step in range(12):
        state, loss = update(state, train, kl_weight=0.1 + step)
        expected.append(loss)
    fitted = fit(
        key,
        *pair,
        train,
        num_steps=12,
        batch_size=4,
        kl_weight=lambda step: 0.1 + step,
        progress=False,
    )
    np.testing.assert_allclose(fitted.history.losses, expected, rtol=1e-4)
    assert fitted.history.best_step == 12
    assert len(fitted.history.seconds) == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        fitted.params,
        svi.get_params(state),
    )


@pytest.mark.slow
def test_data_are_arguments_of_the_program_not_constants_in_it(pair, spirals):
    """A program with the data as constants would be compiled anew for each table."""
    before = jax.config.jax_captured_constants_warn_bytes
    many, held_out = spirals[np.arange(300) % 14], spirals[np.arange(301) % 14]
    jax.config.update("jax_captured_constants_warn_bytes", many.values.nbytes // 2)
    try:
        # Warnings are errors.
        fit(jax.random.key(0), *pair, many, held_out, num_steps=1, progress=False)
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", before)


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_the_parameters_are_those_that_forecast_held_out_data_best(pair, spirals):
    train, held_out = spirals[:10], spirals[10:]
    # The first ten steps are good, the later ones are far too long.
    optim = optax.adam(lambda step: jnp.where(step < 10, 1e-2, 0.5))
    key = jax.random.key(1)
    fitted = fit(key, *pair, train, held_out, num_steps=30, optim=optim, progress=False)
    scores = fitted.history.validation
    assert fitted.history.evaluated.tolist() == [5, 10, 15, 20, 25, 30]
    assert fitted.history.best_step == 5 * (1 + np.argmin(scores)) < 30
    # The score, computed from its definition.
    context, target = held_out.split()
    assert (fitted.model, fitted.guide) == pair
    z0 = posterior(fitted, context).sample(jax.random.fold_in(key, 1), (validation.NUM_DRAWS,))
    log_p = log_predictive(fitted, z0, context, target)[target.mask]
    assert -log_p.mean() == pytest.approx(scores.min(), rel=1e-4)
    same(validation.held_out_pair(fitted.model, held_out), (context, target))
    same(validation.held_out_pair(fitted.model, (context, target)), (context, target))


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_a_training_may_start_from_a_fit(pair, spirals, untyped):
    train = spirals[:10]
    still = optax.sgd(0.0)
    first = fit(jax.random.key(0), *pair, train, num_steps=5, progress=False)
    again = fit(
        jax.random.key(1), *pair, train, num_steps=5, optim=still, start=first, progress=False
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again.params, first.params
    )
    with pytest.raises(ValueError, match="params must be those of this model and guide"):
        fit(jax.random.key(0), *small_pair(train, width=8), train, start=first, progress=False)
    with pytest.raises(ValueError, match=r"start must be a Fitted.*; got dict"):
        fit(jax.random.key(0), *pair, train, start=first.params, progress=False)


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_a_training_that_starts_from_a_fit_never_ends_with_a_worse_one(pair, spirals):
    train, held_out = spirals[:10], spirals[10:]
    options = dict(num_steps=10, progress=False)
    first = fit(jax.random.key(0), *pair, train, held_out, **options)
    assert 0 not in first.history.evaluated
    # Steps that are far too long.
    options |= dict(optim=optax.adam(0.3), start=first)
    again = fit(jax.random.key(1), *pair, train, held_out, **options)
    assert again.history.evaluated.tolist() == [0, 5, 10]
    assert again.history.best_step == 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again.params, first.params
    )
    # Without held-out data nothing can be scored, and the last step counts.
    blind = fit(jax.random.key(1), *pair, train, **options)
    assert len(blind.history.evaluated) == 0
    assert blind.history.best_step == 10


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_patience_ends_a_training_that_gets_no_better(pair, spirals):
    optim = optax.sgd(0.0)
    fitted = fit(
        jax.random.key(0),
        *pair,
        spirals[:10],
        spirals[10:],
        num_steps=1_000,
        patience=10,
        optim=optim,
        progress=False,
    )
    assert fitted.history.evaluated.tolist() == [5, 10, 15]
    assert fitted.history.best_step == 5


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_a_step_that_is_not_finite_is_not_taken(pair, spirals, capsys):
    fitted = fit(
        jax.random.key(0),
        *pair,
        spirals[:10],
        num_steps=10,
        kl_weight=lambda step: jnp.where(step == 3, jnp.nan, 1.0),
    )
    assert np.flatnonzero(np.isnan(fitted.history.losses)).tolist() == [3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))
    # The optimizer has counted nine of the ten steps.
    assert int(fitted.state.optim_state[0]) == 9
    assert "ELBO -" in capsys.readouterr().err


@pytest.mark.slow
def test_a_solve_that_fails_costs_a_step_and_not_the_training(pair, spirals):
    def explosive():
        return lambda t, z: 1e3 * z**3

    rngs = nnx.Rngs(0)
    encoder = MeanEncoder(2, 4, rngs=rngs)
    model, guide = latent_ode(
        spirals[:10], latent_dim=2, dynamics=explosive, encoder=encoder, rngs=rngs
    )
    with pytest.raises(FloatingPointError, match="None of the steps 1 to 3 was finite"):
        fit(jax.random.key(0), model, guide, spirals[:10], num_steps=3, progress=False)
    assert model.solver.throw


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_an_interrupted_training_ends_where_it_would_have_ended(
    pair, spirals, tmp_path, monkeypatch
):
    arguments = (jax.random.key(2), *pair, spirals[:10], spirals[10:])
    whole = fit(*arguments, num_steps=22, patience=15, progress=False)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.0)
    calls = interrupted_at(monkeypatch, 3)
    options = dict(num_steps=22, patience=15, checkpoint_dir=tmp_path / "c", progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit(*arguments, **options)
    resumed = fit(*arguments, **options)
    assert len(calls) == 3 + 3  # Two of five dispatches were kept.
    again = fit(*arguments, **options)
    for other in (resumed, again):
        same(whole.params, other.params)
        same(whole.state.optim_state, other.state.optim_state)
        same(jax.random.key_data(whole.state.rng_key), jax.random.key_data(other.state.rng_key))
        same(whole.history[:3], other.history[:3])
    assert (np.diff(resumed.history.seconds) > 0).all()


def training_to_kill(directory=None):
    """The same training in any process: of the same data, networks, key and options."""
    train = datasets.spirals(jax.random.key(0), num_trajectories=10)
    key, options = jax.random.key(1), dict(num_steps=500, checkpoint_dir=directory)
    return fit(key, *small_pair(train), train, progress=False, **options)


# The test kills it after the first checkpoints.
SCRIPT = f"""
    import sys
    import jax
    sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
    import test_fit

    jax.config.update("jax_disable_most_optimizations", True)
    test_fit.steps.STEPS_AT_ONCE, test_fit.progress.SECONDS_BETWEEN = 5, 0.0
    test_fit.training_to_kill(sys.argv[1])
"""


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_a_killed_training_ends_bit_for_bit_where_it_would_have_ended(tmp_path):
    def done():
        names = (path.name for path in tmp_path.glob("*"))
        return sorted(int(name) for name in names if name.isdecimal())

    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)])
    while not done() and process.poll() is None:
        time.sleep(0.001)
    # Then it is killed, most probably while the second or third checkpoint is written.
    time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (step,) = done()[-1:]
    assert 0 < step < 500
    # Other tests may have compiled the same programs with other optimizations.
    jax.clear_caches()
    whole, resumed = training_to_kill(), training_to_kill(tmp_path)
    assert done()[-1] == 500
    # The first dispatches are those of the killed process.
    same(whole.history[:3], resumed.history[:3])
    same(whole.params, resumed.params)


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.slow
def test_a_checkpoint_of_another_training_is_refused(pair, spirals, tmp_path):
    arguments = (jax.random.key(2), *pair, spirals[:10])
    options = dict(checkpoint_dir=tmp_path / "c", progress=False)
    fit(*arguments, num_steps=5, **options)
    with pytest.raises(ValueError, match=r"same training; .* differs in num_steps"):
        fit(*arguments, num_steps=6, **options)
    with pytest.raises(ValueError, match="differs in rng_key"):
        fit(jax.random.key(3), *arguments[1:], num_steps=5, **options)
    with pytest.raises(ValueError, match="differs in networks"):
        fit(arguments[0], *small_pair(spirals[:10], seed=1), spirals[:10], num_steps=5, **options)
    with pytest.raises(ValueError, match="differs in train"):
        fit(*arguments[:-1], spirals[1:11], num_steps=5, **options)
    other = small_pair(spirals[:10], width=5)
    with pytest.raises(ValueError, match="differs in parts"):
        fit(arguments[0], *other, spirals[:10], num_steps=5, **options)
    with pytest.raises(ValueError, match="checkpoint_dir must have the parameters of"):
        fit(*arguments, num_steps=5, optim=optax.sgd(0.1), **options)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive integer; got 0"),
        ({"num_steps": 2.5}, "num_steps must be a positive integer; got 2.5"),
        ({"batch_size": 11}, "batch_size must be an integer from 1 to .* 10; got 11"),
        ({"patience": 5}, "patience must come with validation; got 5 without"),
        ({"patience": 0, "validation": 0}, "patience must be a positive integer; got 0"),
        ({"kl_weight": lambda step: 0.0}, "kl_weight must be positive; got 0.0 at step 0"),
        ({"kl_weight": lambda step: 4 - step}, "kl_weight must be positive; got 0 at step 4"),
        ({"validation": "late"}, "validation must be Trajectories, or a pair .*; got str"),
        ({"train": None}, "context must be Trajectories; got NoneType"),
    ],
)
def test_what_cannot_be_trained_is_refused(pair, spirals, changed, message):
    arguments = {"train": spirals[:10], "num_steps": 5} | changed
    if arguments.get("validation") == 0:
        arguments["validation"] = spirals[10:]
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), *pair, progress=False, **arguments)


def test_validation_data_without_anything_to_forecast_are_refused(pair, spirals):
    nothing = spirals[10:].before(-1.0)
    with pytest.raises(ValueError, match="target must hold at least one observation"):
        fit(jax.random.key(0), *pair, spirals[:10], nothing, num_steps=1)
