"""A mesh divides rows, and nothing else changes. Errors say what a mesh must be."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode.parts.devices import by_rows, check_mesh, gathered, of_member, on_mesh, said

ON_EIGHT = """
import json
import jax
import jax.numpy as jnp
from np_latentode.parts.devices import by_rows, check_mesh, divided, on_mesh

mesh = check_mesh(jax.make_mesh((8,), ("trajectory",)), "trajectory")
weights = jnp.array([[1.0, -2.0], [0.5, 3.0]])


def field(weights, x, beside):
    sizes.append(len(x))
    def step(z, _):
        return jnp.tanh(z @ weights) + beside["s"], None
    return jax.lax.scan(step, x, None, length=3)[0]


@jax.jit
def loss(weights, x, beside):
    def total(weights):
        return (by_rows(field, weights, x, beside) ** 2).sum()
    return jax.value_and_grad(total)(weights)


found = []
for rows in (16, 21, 5):
    x = jnp.linspace(-1, 1, 2 * rows).reshape(rows, 2)
    beside = {"s": x[:, ::-1]}
    sizes = []
    plain = loss(weights, x, beside)
    with on_mesh(mesh):
        apart = loss(weights, divided(x, mesh), divided(beside, mesh))
    found.append([sorted({*sizes}), *[[float(v), g.tolist()] for v, g in (plain, apart)]])
print(json.dumps(found))
"""


def test_eight_devices_compute_their_shares_of_rows_and_the_same_gradients():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT], env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert [sizes for sizes, *_ in found] == [[2, 16], [3, 21], [1, 5]]
    for _, (plain, slope), (apart, other) in found:
        np.testing.assert_allclose(apart, plain, rtol=1e-5)
        np.testing.assert_allclose(other, slope, rtol=1e-4, atol=1e-5)


def one_device(*axes):
    return jax.make_mesh((1,) * len(axes), axes, devices=jax.devices()[:1])


def test_without_a_mesh_rows_stay_as_they_are():
    rows = jnp.arange(3.0)
    assert by_rows(lambda shared, x: (shared, x), "shared", rows) == ("shared", rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (jax.devices, "must be a jax.sharding.Mesh with the axis 'trajectory', such as"),
        (lambda: one_device("data"), "with the axis 'trajectory', and no other; got the axes"),
        (lambda: one_device("member", "trajectory"), "and no other; got the axes"),
    ],
)
def test_what_is_no_mesh_of_trajectories_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        check_mesh(make(), "trajectory")


def test_a_mesh_is_taken_whatever_the_types_of_its_axes():
    explicit = one_device("trajectory")
    assert check_mesh(explicit, "trajectory").shape == explicit.shape


def test_members_have_the_devices_of_their_places():
    mesh = check_mesh(one_device("member", "trajectory"), "member", "trajectory")
    assert of_member(mesh, 4).shape == {"trajectory": 1}
    assert of_member(mesh, 4).devices.tolist() == [*mesh.devices.flat]
    alone = check_mesh(one_device("trajectory"), "member", "trajectory")
    assert of_member(alone, 4) == alone


def test_what_is_gathered_is_what_was_there():
    mesh = check_mesh(one_device("trajectory"), "trajectory")
    key = jax.random.key(1)
    with on_mesh(mesh):
        array, same = gathered((jnp.arange(3), key), mesh)
    assert array.tolist() == [0, 1, 2]
    assert jax.random.key_data(same).tolist() == jax.random.key_data(key).tolist()
    assert said(7, mesh) == [7]
