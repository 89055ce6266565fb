"""Two processes on two cores against one on one core: how much faster is a training step?

    .venv/bin/python benchmarks/devices.py [--steps 20] [--repeats 3] [--pairs 1] [--batch 512]

Each process is pinned to a core of its own. The work is the same: a training of a latent ODE, batch
512 of 1,024 trajectories of 50 times, latent dimension 64, width 256, with constant steps. Runs of
one and of two processes alternate, and the first dispatch of each, which compiles, is not counted.
The losses are compared, too. Other work on the cores spoils the ratio of seconds, and the table
ends with the load of the machine before and after. The ratio of CPU seconds, those of the first
process, is less exposed. It counts what is computed, but not what is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(steps=20, repeats=3, pairs=1, batch=512, width=256, latent=64).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--worker", nargs=3, metavar=("NUMBER", "COUNT", "PORT"))
    return parser.parse_args()


def worker(asked: argparse.Namespace) -> None:
    """One process of a training; the first prints its seconds and losses as JSON."""
    number, count, port = map(int, asked.worker)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    from np_latentode import ODERNN, MLPDynamics, Trajectories, fit, latent_ode
    from np_latentode.training import progress, steps

    progress.STEPS_AT_ONCE = steps.STEPS_AT_ONCE = asked.steps
    append, marks = progress._append, []

    def noted(*args):
        marks.append((time.perf_counter(), time.process_time()))
        return append(*args)

    progress._append = noted
    key, latent = jax.random.key(0), asked.latent
    times = jnp.sort(jax.random.uniform(key, (1_024, 50), maxval=5.0), axis=1)
    phases = jnp.arange(1_024.0)[:, None, None]
    train = Trajectories(times, jnp.sin(times[..., None] * jnp.arange(1, 5) + phases))
    rngs = nnx.Rngs(0)
    model, guide = latent_ode(
        train,
        latent_dim=latent,
        dynamics=MLPDynamics(latent, width=asked.width, rngs=rngs),
        encoder=ODERNN(4, hidden_dim=latent, width=asked.width, rngs=rngs),
        rngs=rngs,
    )
    mesh = jax.make_mesh((count,), ("trajectory",))
    taken = dict(num_steps=asked.steps * (1 + asked.repeats), batch_size=asked.batch)
    fitted = fit(jax.random.key(1), model, guide, train, **taken, mesh=mesh, progress=False)
    seconds, cpu = np.diff(np.array(marks), axis=0).T.tolist()
    found = {"seconds": seconds, "cpu": cpu, "losses": fitted.history.losses.tolist()}
    if number == 0:
        print(json.dumps(found), flush=True)


def run(count: int) -> dict[str, list[float]]:
    """A training by so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--worker", str(k), str(count), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for k in range(count)
    ]
    texts = [process.communicate()[0] for process in started]
    return json.loads(texts[0].splitlines()[-1])


def main() -> None:
    asked = options()
    if asked.worker:
        return worker(asked)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This benchmark needs two cores.")
    before = os.getloadavg()[0]
    runs = [(run(1), run(2)) for _ in range(asked.pairs)]
    apart = max(
        abs(a / b - 1)
        for one, two in runs
        for a, b in zip(one["losses"], two["losses"], strict=True)
    )
    for kind in ("seconds", "cpu"):
        one, two = (
            statistics.median([t for pair in runs for t in pair[k][kind]]) / asked.steps
            for k in (0, 1)
        )
        print(f"{kind:8}   one {one:.3f} a step, two {two:.3f}, one / two {one / two:.2f}")
    print(f"losses differ by at most {apart:.1e} of themselves")
    print(f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
