"""The leaves of a distribution have one order, whatever order NumPyro has for its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import printed_by_processes

from np_latentode.inference.leaves import ordered_leaves

X = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)
MASK = jnp.array([True, False])
DISTRIBUTIONS = {
    "normal": lambda: dist.Normal(jnp.arange(3.0), jnp.ones(3)),
    "masked": lambda: dist.StudentT(4.0, jnp.arange(3.0), 2.0).to_event(1).mask(MASK),
    "always": lambda: dist.Normal(jnp.arange(3.0), 2.0).to_event(1).mask(True),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.array([0.1, 0.4])),
        dist.Normal(jnp.array([0.0, 1.0]), jnp.array([1.0, 2.0])),
    ),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(jnp.arange(3.0), 1.0), [dist.transforms.AffineTransform(jnp.ones(3), 2.0)]
    ),
}


@pytest.fixture
def reverse(monkeypatch):
    """Gives NumPyro's fields the other order, as in another process."""

    def turn(fields):
        def gather(cls):
            return fields.__func__(cls)[::-1]

        return classmethod(gather)

    def turn_all():
        for name in ("gather_pytree_data_fields", "gather_pytree_aux_fields"):
            monkeypatch.setattr(dist.Distribution, name, turn(getattr(dist.Distribution, name)))

    return turn_all


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_order_is_the_same_if_that_of_the_fields_is_reversed(name, reverse):
    first, _ = ordered_leaves(DISTRIBUTIONS[name]())
    reverse()
    second, rebuild = ordered_leaves(DISTRIBUTIONS[name]())
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = DISTRIBUTIONS[name]().log_prob(X)
    np.testing.assert_array_equal(rebuild(second).log_prob(X), expected)


SCRIPT = """
import hashlib, jax, numpy as np
from flax import nnx
from np_latentode import Fitted, OrnsteinUhlenbeckLikelihood, Trajectories, latent_ode
from np_latentode.inference.stages import find_mixture
from np_latentode.programs.params import initial_params
data = Trajectories([[0.0, 1.0, 2.0]] * 2, [[[1.0, 2.0]] * 3] * 2)
pair = latent_ode(data, latent_dim=2, likelihood=OrnsteinUhlenbeckLikelihood(), rngs=nnx.Rngs(0))
fitted = Fitted(*pair, initial_params(*pair))
z0, log_p = np.zeros((2, 5, 2), np.float32), np.zeros((2, 5), np.float32)
lowered = find_mixture.lower(jax.random.key(0), data, z0, log_p, fitted=fitted, max_steps=16)
print(hashlib.sha256(lowered.as_text().encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_program_that_finds_modes_is_the_same_in_every_process():
    """So that JAX finds the compiled one on disk."""
    assert len(printed_by_processes(SCRIPT)) == 1


def test_other_pytrees_keep_their_order():
    tree = {"a": jnp.zeros(2), "b": [dist.Normal(jnp.ones(3), 1.0), jnp.zeros(4)]}
    leaves, rebuild = ordered_leaves(tree)
    assert [jnp.shape(leaf) for leaf in leaves] == [(2,), (3,), (1,), (4,)]
    for one, other in zip(jax.tree.leaves(rebuild(leaves)), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(one, other)
