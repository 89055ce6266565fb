"""Trainings on several devices, for tests to start in processes of their own; prints JSON.

python on_devices.py 8 [FIRST SECOND PORT CHECKPOINTS STOP]: the number of simulated devices; and of
one of several processes its number, how many there are, where they meet, the directory of
checkpoints, and after how many dispatches the last process is killed (0: never).
"""

import json
import os
import signal
import sys
from dataclasses import replace

COUNT, *PROCESS = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={COUNT}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)
if cached := os.environ.get("TEST_PROGRAMS"):
    jax.config.update("jax_compilation_cache_dir", cached)
if PROCESS:
    NUMBER, PROCESSES = map(int, PROCESS[:2])
    if PROCESSES > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{PROCESS[2]}", PROCESSES, NUMBER)

import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from np_latentode import (  # noqa: E402
    Scaling,
    SummaryEncoder,
    Trajectories,
    fit,
    fit_ensemble,
    forecast,
    latent_ode,
)
from np_latentode.training import progress  # noqa: E402

times = jnp.sort(jax.random.uniform(jax.random.key(0), (21, 6), maxval=5.0), axis=1)
waves = Trajectories(times, jnp.sin(times + jnp.arange(21.0)[:, None])[..., None])
train, others = waves[:16], waves[16:]


def build(rngs):
    encoder = SummaryEncoder(1, hidden_dim=4, rngs=rngs)
    scaling = Scaling.fit(waves)
    return latent_ode(train, latent_dim=2, scaling=scaling, encoder=encoder, rngs=rngs)


def fitted(num_steps=110, batch_size=11, **options):
    model, guide = build(nnx.Rngs(0))
    options |= dict(num_steps=num_steps, batch_size=batch_size, progress=False)
    return fit(jax.random.key(1), model, guide, train, others, **options)


def summary(one):
    leaves = jax.tree.leaves(one.params)
    numbers = np.concatenate([np.ravel(leaf) for leaf in leaves])
    return {"losses": one.history.losses.tolist(), "params": numbers.tolist()}


def ensemble(**options):
    options |= dict(num_members=3, num_steps=110, progress=False)
    return fit_ensemble(jax.random.key(2), build, train, others, **options)


def failure(one, at, **options):
    """What a forecast says if no solve can succeed."""
    broken = jax.tree.map(lambda array: array * jnp.nan, one.params)
    try:
        forecast(jax.random.key(3), replace(one, params=broken), others, at, **options)
    except RuntimeError as error:
        return str(error)


def on_eight():
    one = fitted()
    devices = jax.make_mesh((8,), ("trajectory",))
    places = jax.make_mesh((2, 4), ("member", "trajectory"))
    at = jnp.array([1.0, 6.0])
    draws = [
        forecast(jax.random.key(3), one, others, at, num_samples=12, **options)
        for options in ({}, {"mesh": devices})
    ]
    return {
        "one": summary(one),
        "eight": summary(fitted(mesh=devices)),
        "whole": [summary(fitted(batch_size=None, **o)) for o in ({}, {"mesh": devices})],
        "failure": failure(one, at, num_samples=12, mesh=devices),
        "draws": [np.asarray(some["x"]).tolist() for some in draws],
        "ensembles": [
            [summary(member) for member in ensemble(**options).members]
            for options in ({}, {"mesh": places})
        ],
    }


def in_processes(checkpoints, stop):
    # A process whose computer fails says nothing: it is gone after its last dispatch.
    append, calls = progress._append, []

    def last(*args):
        calls.append(args)
        if len(calls) == stop and NUMBER == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(*args)

    progress._append = last
    mesh = jax.make_mesh((PROCESSES,), ("trajectory",))
    options = dict(num_steps=310, checkpoint_dir=checkpoints or None)
    try:
        found = summary(fitted(mesh=mesh, **options))
    except Exception as error:
        return {"error": str(error)}
    if checkpoints:
        return found
    places = jax.make_mesh((PROCESSES,), ("member",))
    found["members"] = [summary(member) for member in ensemble(mesh=places).members]
    draws = forecast(jax.random.key(3), fitted(), others, jnp.array([6.0]), mesh=mesh)
    return found | {"draws": np.asarray(draws["x"]).tolist()}


found = in_processes(PROCESS[3], int(PROCESS[4])) if PROCESS else on_eight()
if PROCESS and PROCESSES > 1 and not int(PROCESS[4]):
    # It waits for all, as the others fail if the first is gone: before they print, as a full pipe
    # holds a process until somebody reads.
    jax.distributed.shutdown()
print(json.dumps(found), flush=True)
# Without waiting for processes that were killed.
os._exit(0)
