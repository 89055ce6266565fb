"""The ELBO whose program is the same in every process."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import printed_by_processes
from numpyro.infer import Trace_ELBO

from np_latentode import Trajectories, latent_ode
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.programs.params import initial_params

RNG = np.random.default_rng(0)
DATA = Trajectories(np.sort(RNG.uniform(0, 3, (5, 4)), axis=1), RNG.normal(size=(5, 4, 2)))


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2}, {"kl_weight": 0.3}], ids=["all", "batch", "kl"]
)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_it_is_the_loss_of_trace_elbo(num_particles, options):
    model, guide = latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))
    params = initial_params(model, guide)
    ours, theirs = (
        kind(num_particles=num_particles).loss(
            jax.random.key(1), params, model, guide, DATA, **options
        )
        for kind in (OrderedELBO, Trace_ELBO)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


SCRIPT = """
import hashlib, jax, optax
from flax import nnx
from numpyro.infer import SVI
from np_latentode import Trajectories, latent_ode
from np_latentode.programs.elbo import OrderedELBO
data = Trajectories([[0.0, 1.0, 2.0]] * 2, [[[1.0, 2.0]] * 3] * 2)
svi = SVI(*latent_ode(data, latent_dim=2, rngs=nnx.Rngs(0)), optax.adam(0.1), OrderedELBO())
state = jax.eval_shape(svi.init, jax.random.key(0), data)
print(hashlib.sha256(jax.jit(svi.update).lower(state, data).as_text().encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_program_of_a_step_is_the_same_in_every_process():
    """So that JAX finds the compiled one on disk."""
    assert len(printed_by_processes(SCRIPT)) == 1
