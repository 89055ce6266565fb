"""Training: the steps of NumPyro's SVI, many per dispatch, with validation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike

from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.devices import TRAJECTORY, check_mesh
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.training.plan import make_plan
from np_latentode.training.progress import train_all

__all__ = ["fit"]


def fit(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    train: Trajectories | StoredTrajectories,
    validation: Trajectories | tuple[Trajectories, Trajectories] | None = None,
    *,
    num_steps: int = 5_000,
    batch_size: int | None = None,
    conditioning: Conditioning | None = random_context,
    optim: optax.GradientTransformation | None = None,
    kl_weight: Callable[[Array], ArrayLike] | None = None,
    loss: Any = None,
    patience: int | None = None,
    start: Fitted | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Fitted:
    """Trains by SVI, and keeps the parameters that forecast held-out data best.

    max E_q(z0 | conditioning(x)) [log p(x | z0)] - kl_weight KL(q || p)

    The steps are those of `SVI(model, guide, optim, Trace_ELBO(), batch_size=batch_size,
    conditioning=conditioning)`, a hundred per dispatch. A step that is not finite is skipped, as in
    `SVI.stable_update`. An ODE solve that fails is one cause.

    If more than half of the padded data would be padding, as with one long trajectory beside short
    ones, each step draws its share of the batch from each of several buckets of similar lengths.
    The ELBO is estimated without bias either way; `BucketLoss` says how.

    Args:
        rng_key: a key.
        model, guide: the programs to train; they are not changed.
        train: the training data. Those on disk are read in random chunks, one for each hundred
            steps, with 100 trajectories for each of a batch; see `Chunks`. They need a batch_size.
        validation: a pair (context, target). After every hundred steps, the score is the log
            density of the target under forecasts from the context. For one `Trajectories` the pair
            is `validation.split()`: the second half of the observed times given the first.
        num_steps: the highest number of steps.
        batch_size: trajectories per step, at least one of each bucket. Default: all.
        conditioning: picks what the guide sees of each trajectory in a step.
        optim: an optimizer of optax. Default: `optimizer(num_steps)`.
        kl_weight: `step -> weight` of the KL in both model and guide, positive, such as
            `optax.linear_schedule(0.01, 1.0, 1_000)`. Default: 1, which gives the ELBO.
        loss: a loss of NumPyro. Default: that of `Trace_ELBO()`, summed in a fixed order.
        patience: stop after this many steps without a better validation score. The last steps of
            the default optim are the best ones, as its learning rate falls to 0: patience of less
            than a third of num_steps may end training before. Default: never.
        start: a fit of the same model and guide, from whose parameters training starts. Default:
            the initial parameters of the parts.
        checkpoint_dir: the directory of checkpoints. One is written every half minute, and at the
            end. If there is one of the same training, `fit` goes on from it. On the same machine,
            the result is then bit for bit that of a training without interruption. `fit` cannot
            compare functions: pass the same optim, conditioning, kl_weight and loss.
        mesh: the devices to train on, with the axis "trajectory", the name of the plate, as of
            `jax.make_mesh((8,), ("trajectory",))`. The trajectories of a step are divided over
            them, and the networks are on each. Losses are those of one device, but for rounding.
            With several processes, all call `fit` alike, and the first writes checkpoints.
            Default: one device.
        progress: whether to show a progress bar with the ELBO per trajectory, the validation score,
            and the time left.

    Returns:
        The fit. Its parameters are those of the step with the best validation score, or of the last
        step without validation. It holds the history, and the state of SVI after the last step.

    Raises:
        ValueError: if an argument breaks a rule, before anything is computed.
        FloatingPointError: if none of the steps of a dispatch is finite.
        OSError: if a checkpoint cannot be written; then the earlier one is kept.
    """
    devices = None if mesh is None else check_mesh(mesh, TRAJECTORY)
    plan = make_plan(
        rng_key,
        model,
        guide,
        train,
        validation,
        num_steps=num_steps,
        batch_size=batch_size,
        conditioning=conditioning,
        optim=optim,
        kl_weight=kl_weight,
        loss=loss,
        patience=patience,
        start=start,
    )
    if checkpoint_dir is not None:
        plan = plan.kept_in(Path(checkpoint_dir))
    (done,) = train_all([plan.on(devices)], progress=progress)
    return Fitted(model, guide, done.params, done.history, done.state)
