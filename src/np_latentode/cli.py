"""The command `np-latentode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from np_latentode._started import STARTED

__all__ = ["app"]

app = typer.Typer(
    help="Latent ODEs for irregular time series.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def commands() -> None:
    """Latent ODEs for irregular time series."""


@app.command(
    epilog="Example:  np-latentode spirals --output-dir runs/priors --prior ring+mixture --seed 1"
)
def spirals(
    output_dir: Annotated[
        Path, typer.Option(help="Where the results go; must be new, unless --overwrite.")
    ] = Path("runs/spirals"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 14_000,
    seed: Annotated[int, typer.Option(help="Of the networks and of training.")] = 0,
    latent_dim: Annotated[int, typer.Option(min=1, help="Dimension of the latent state.")] = 4,
    batch_size: Annotated[
        int, typer.Option(min=1, max=200, help="Trajectories a step, of 200.")
    ] = 50,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="Fit under this prior as well, and compare with N(0, I): mixture, flow, circle, "
            "ring, one of the last two and what the other numbers follow, as in ring+mixture, or a "
            "flow over one of these, as in flow/ring+mixture. Can be repeated."
        ),
    ] = None,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="Check guide and bands by exact posteriors, too: writes diagnosis.txt, exact.nc, "
            "predictions into posterior.nc, and figures; takes two minutes more.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run as a whole.")
    ] = False,
) -> None:
    """Fit noisy spirals, reconstruct and extrapolate held-out ones, and report how good it is.

    Writes metrics.json, posterior.nc (for ArviZ) and figures as PNG.
    """
    # Imported here, as bad options should be refused before more is loaded.
    from np_latentode.experiments import spirals as experiment

    try:
        experiment.run(
            output_dir,
            steps=steps,
            seed=seed,
            latent_dim=latent_dim,
            batch_size=batch_size,
            priors=prior or (),
            diagnose=diagnose,
            overwrite=overwrite,
            started=STARTED,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"np-latentode spirals: {error}", err=True)
        raise typer.Exit(2) from error
