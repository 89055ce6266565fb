"""The command `np-latentode`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

STARTED = time.perf_counter()
"""When the program started, before JAX is imported."""

app = typer.Typer(
    help="Latent ODEs for irregular time series.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


OutputDir = Annotated[
    Path, typer.Option(help="Where the results go; must be new, unless --overwrite.")
]
Seed = Annotated[int, typer.Option(help="Of the networks and of training.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run as a whole.")
]


@app.callback()
def commands() -> None:
    """Latent ODEs for irregular time series.

    Exit codes: 0 when all is done, 2 when something that was given cannot be used, 1 when a file
    cannot be written or training diverges, 130 when interrupted.
    """


@app.command(
    epilog="Example:  np-latentode fit labs.csv --id patient --time day --values bili,albumin "
    "--log bili --holdout 0.2 --output-dir run/"
)
def fit(
    data: Annotated[Path, typer.Argument(help="A .csv, .parquet or .nc file, a row a visit.")],
    id: Annotated[str, typer.Option(help="The column that says who was observed.")],
    time: Annotated[
        str, typer.Option(help="The column that says when: numbers, or dates as 2020-01-31.")
    ],
    values: Annotated[
        list[str],
        typer.Option(
            help="The columns of what was measured, numbers, divided by commas or repeated; empty "
            "where nothing was."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Where the results go.")],
    log: Annotated[
        list[str] | None,
        typer.Option(help="Those of the values to model by their logarithm; they are positive."),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="What dates are counted in: W, D, h, m or s; of no account else.")
    ] = "D",
    holdout: Annotated[
        float, typer.Option(help="The share of the ids to hold out and score forecasts of.")
    ] = 0.2,
    latent_dim: Annotated[int, typer.Option(min=1, help="Dimension of the latent state.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, at most.")] = 5_000,
    patience: Annotated[
        int, typer.Option(min=1, help="Steps without a better validation score before it ends.")
    ] = 1_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Trajectories a step, at most.")] = 50,
    seed: Annotated[
        int, typer.Option(help="Of the networks, of training, and of who is held out.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of another fit as a whole.")
    ] = False,
) -> None:
    """Fit a table, score forecasts of ids held out, and keep the fit for `forecast`.

    Writes fit/ (which `np_latentode.load` reads, too), metrics.json, heldout.csv and figures as
    PNG. Interrupted, the same command goes on where it was; finished, it is not done again.
    """
    from np_latentode.app.fit_table import fit_table

    _keep_compiled_programs()
    with _told("fit"):
        fit_table(
            data,
            output_dir,
            id=id,
            time=time,
            values=_names(values),
            log=_names(log),
            unit=unit,
            holdout=holdout,
            latent_dim=latent_dim,
            steps=steps,
            patience=patience,
            batch_size=batch_size,
            seed=seed,
            overwrite=overwrite,
        )


@app.command(
    epilog="Examples:  np-latentode forecast run/ new.csv --until 400 -o forecast.csv --plot      "
    "np-latentode forecast run/ new.csv --ahead 90 --quantiles 0.1,0.9 -o forecast.parquet"
)
def forecast(
    run: Annotated[Path, typer.Argument(help="The output directory of `fit`.")],
    data: Annotated[
        Path, typer.Argument(help="What is known of each id, in columns named as those fitted.")
    ],
    until: Annotated[
        str | None, typer.Option(help="The last time to forecast, a number or a date.")
    ] = None,
    ahead: Annotated[
        float | None, typer.Option(help="Or how far beyond each id's last measurement.")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Times for each id, evenly spaced.")] = 50,
    quantiles: Annotated[
        str, typer.Option(help="Of new observations, between 0 and 1, divided by commas.")
    ] = "0.05,0.5,0.95",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .csv, .parquet or .nc file.")
    ] = Path("forecast.csv"),
    draws: Annotated[int, typer.Option(min=2, help="From the posterior predictive.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the first four as well, into a .png file.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
) -> None:
    """Forecast every id of a table: mean, standard deviation and quantiles of new observations."""
    from np_latentode.app.fit_table import forecast_table

    _keep_compiled_programs()
    with _told("forecast"):
        table = forecast_table(
            run,
            data,
            output,
            until=until,
            ahead=ahead,
            points=points,
            quantiles=_numbers("quantiles", quantiles),
            draws=draws,
            seed=seed,
            plot=plot,
            overwrite=overwrite,
        )
        print(f"{len(table)} forecasts in {output}")


@app.command(
    epilog="Example:  np-latentode spirals --output-dir runs/priors --prior ring+mixture --seed 1"
)
def spirals(
    output_dir: OutputDir = Path("runs/spirals"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 14_000,
    seed: Seed = 0,
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
    overwrite: Overwrite = False,
) -> None:
    """Fit noisy spirals, reconstruct and extrapolate held-out ones, and report how good it is.

    Writes metrics.json, posterior.nc (for ArviZ) and figures as PNG.
    """
    # Imported here, as bad options should be refused before more is loaded.
    from np_latentode.studies import spirals as experiment

    _keep_compiled_programs()
    with _told("spirals"):
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


@app.command(epilog="Example:  np-latentode clinical --output-dir runs/clinical --splits 1")
def clinical(
    output_dir: OutputDir = Path("runs/clinical"),
    splits: Annotated[int, typer.Option(min=1, help="How many, of the seeds 0, 1, ...")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each.")] = 1_000,
    overwrite: Overwrite = False,
) -> None:
    """Forecast held-out patients of the Mayo PBC trial, beside mixed models and the last value.

    The second half of each held-out patient's visits from the first half, seven labs. Writes
    metrics.json and figures as PNG. Needs pip install 'np-latentode[data]'.
    """
    from np_latentode.studies import clinical as experiment

    _keep_compiled_programs()
    with _told("clinical"):
        experiment.run(output_dir, splits=splits, steps=steps, overwrite=overwrite)


@app.command(
    epilog="Example:  np-latentode hopper --task extrapolation --observed 0.1 --protocol paper "
    "--output-dir runs/hopper"
)
def hopper(
    output_dir: OutputDir = Path("runs/hopper"),
    task: Annotated[str, typer.Option(help="interpolation or extrapolation.")] = "interpolation",
    observed: Annotated[
        float, typer.Option(help="The share of points seen; published are 0.1, 0.2, 0.3 and 0.5.")
    ] = 0.1,
    protocol: Annotated[
        str,
        typer.Option(
            help="paper: extrapolate from the first 100 of 200 states; released: from the first "
            "66, as the code released with the paper does."
        ),
    ] = "paper",
    trajectories: Annotated[
        int, typer.Option(min=5, help="To train on and to test; published scores are of 10,000.")
    ] = 10_000,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps.  [default: 25,000; 12,000 for extrapolation]"),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """One cell of table 3 of Rubanova, Chen & Duvenaud (2019), beside what learns nothing.

    Writes metrics.json and figures as PNG. Needs pip install 'np-latentode[hopper]'; trajectories
    are simulated once, in half a minute, and kept in ~/.cache/np_latentode.
    """
    from np_latentode.studies import hopper as experiment

    _keep_compiled_programs()
    with _told("hopper"):
        experiment.run(
            output_dir,
            task=task,
            observed=observed,
            protocol=protocol,
            num_trajectories=trajectories,
            steps=steps,
            seed=seed,
            overwrite=overwrite,
        )


@contextmanager
def _told(command: str) -> Iterator[None]:
    """Errors in a sentence, and their exit codes."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"np-latentode {command}: interrupted.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        typer.echo(f"np-latentode {command}: {error}", err=True)
        given = isinstance(error, (ValueError, ImportError, FileNotFoundError))
        raise typer.Exit(2 if given else 1) from error


def _names(options: list[str] | None) -> list[str]:
    return [name.strip() for option in options or () for name in option.split(",")]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, divided by commas; got {text!r}.") from error


def _keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that a second run starts in seconds."""
    import jax

    from np_latentode.storage.cache import cache_dir

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
