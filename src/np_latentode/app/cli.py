"""The command `np-latentode`."""

from __future__ import annotations

import time as clock
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from np_latentode.app import options

# JAX, NumPy and all that needs them are imported by the command that needs them.

__all__ = ["app"]

STARTED = clock.perf_counter()
"""When the program started."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(f"np-latentode {version('np-latentode')}")
        raise typer.Exit
    return asked


@app.callback(epilog="Start with:  np-latentode fit --help")
def commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Latent ODEs for irregular time series.

    Exit codes: 0 on success, 2 if an argument or a file given cannot be used, 1 if a file cannot be
    written or training diverges, 130 if interrupted.
    """


@app.command(
    short_help="Fit a table, and score forecasts of held-out ids.",
    epilog="\b\nExamples:\n"
    "  np-latentode fit labs.csv --id patient --time day \\\n"
    "    --values bili,albumin --log bili --holdout 0.2 --output-dir run/\n"
    "  np-latentode fit export.csv --id patient --time date \\\n"
    "    --feature test_name --value result --output-dir run/",
)
def fit(
    data: options.Data,
    *,
    id: options.Id,
    time: options.Time,
    output_dir: options.OutputDir,
    values: options.Values = None,
    feature: options.Feature = None,
    value: options.Value = None,
    log: options.Log = None,
    static: options.Static = None,
    kind: options.Kinds = None,
    inputs: options.Inputs = None,
    error: options.Errors = None,
    since: options.Since = None,
    unit: options.Unit = None,
    window: options.Window = None,
    on_disk: options.OnDisk = False,
    holdout: options.Holdout = 0.2,
    split: options.Split = None,
    origins: options.Origins = 1,
    residual: options.Residual = "ou",
    inference: options.Inference = "auto",
    latent_dim: options.LatentDimOfNetwork = None,
    members: options.Members = None,
    recalibrate: options.Recalibrate = True,
    steps: options.MostSteps = 6_000,
    patience: options.Patience = 500,
    batch_size: options.BatchSize = 50,
    seed: options.SeedOfAll = 0,
    overwrite: options.OverwriteFit = False,
) -> None:
    """Fit a table, score forecasts of held-out ids, and save the fit for `forecast`.

    Writes fit/ (which `np_latentode.load` also reads), metrics.json, heldout.csv and figures as
    PNG. After an interruption the same command goes on; a finished fit is not repeated.
    """
    given: dict[str, Any] = dict(id=id, time=time, feature=feature, value=value, unit=unit)
    given |= dict(since=since, window=window, on_disk=on_disk, holdout=holdout)
    given |= dict(split=split, origins=origins)
    given |= dict(residual=residual, inference=inference)
    given |= dict(latent_dim=latent_dim, members=members, recalibrate=recalibrate)
    given |= dict(steps=steps, patience=patience, batch_size=batch_size, seed=seed)
    given |= dict(overwrite=overwrite)
    with _reported("fit"):
        from np_latentode.app.column_names import named_errors, named_kinds, named_values
        from np_latentode.app.fit_table import fit_table

        columns = dict(id=id, time=time, feature=feature, value=value)
        given |= named_values(data, values, log, static, inputs, **columns)
        given |= dict(kind=named_kinds(kind), error=named_errors(error))
        _keep_compiled_programs()
        fit_table(data, output_dir, **given)


@app.command(
    short_help="Forecast every id of a table with a fit.",
    epilog="\b\nExamples:\n"
    "  np-latentode forecast run/ new.csv --until 400 -o forecast.csv --plot\n"
    "  np-latentode forecast run/ new.csv --ahead 90 --quantiles 0.1,0.9\n"
    "  np-latentode forecast run/ new.csv --ahead 365 --every 30 --threshold 'bili > 2'\n"
    "  np-latentode forecast run/ new.csv --ahead 90 --plan doses.csv",
)
def forecast(
    run: options.Run,
    data: options.Known,
    *,
    until: options.Until = None,
    ahead: options.Ahead = None,
    plan: options.Plan = None,
    points: options.Points = None,
    every: options.Every = None,
    on: options.On = None,
    at: options.At = None,
    threshold: options.Thresholds = None,
    quantiles: options.Quantiles = "0.05,0.5,0.95",
    output: options.Output = Path("forecast.csv"),
    draws: options.Draws = 500,
    inference: options.InferenceOfFit = None,
    seed: options.SeedOfDraws = 0,
    plot: options.Plot = False,
    overwrite: options.OverwriteFiles = False,
) -> None:
    """Forecast every id of a table: mean, standard deviation and quantiles of new observations.

    With --threshold, also the probability of each path, without white noise, to be beyond it at a
    time, and to have been so by then; and when it is so for the first time.
    """
    with _reported("forecast"):
        given: dict[str, Any] = dict(until=until, ahead=ahead, points=points, draws=draws)
        given |= dict(quantiles=_numbers("quantiles", quantiles), seed=seed, plot=plot)
        given |= dict(inference=inference, plan=plan)
        given |= dict(every=every, on=on or (), at=at, thresholds=threshold or ())
        from np_latentode.app.forecast_table import crossing_outputs, forecast_table

        _keep_compiled_programs()
        count = forecast_table(run, data, output, **given, overwrite=overwrite)
        print(f"{count} forecasts in {output}")
        if threshold:
            crossings, first = crossing_outputs(output)
            print(f"probabilities of {', '.join(threshold)} in {crossings}, first times in {first}")


@app.command(
    short_help="The effect of a static covariate on forecasts, with bands.",
    epilog="\b\nExamples:\n"
    "  np-latentode effect run/ trial.csv --of arm --between placebo,drug --plot\n"
    "  np-latentode effect run/ trial.csv --of age -o age.csv",
)
def effect(
    run: options.Run,
    data: options.DataOfEffect,
    *,
    of: options.Of,
    between: options.Between = None,
    until: options.UntilLast = None,
    points: options.PointsOfEffect = 50,
    level: options.Level = 0.9,
    output: options.Output = Path("effect.csv"),
    seed: options.SeedOfDraws = 0,
    plot: options.PlotEffect = False,
    overwrite: options.OverwriteFiles = False,
) -> None:
    """By how much a static covariate changes forecasts, all other covariates being equal.

    The difference of the mean paths, or their ratio where the logarithm is modelled, averaged over
    the ids of a table, with a band for the uncertainty of the fit. It is an effect if the covariate
    was randomized, as the arm of a trial; otherwise it is an association.
    """
    with _reported("effect"):
        from np_latentode.app.effect_table import effect_table

        _keep_compiled_programs()
        given: dict[str, Any] = dict(between=between, until=until, points=points, level=level)
        said = effect_table(
            run, data, output, of, **given, seed=seed, plot=plot, overwrite=overwrite
        )
        print(said)


@app.command(
    short_help="Study of noisy spirals.",
    epilog="\b\nExample:\n  np-latentode spirals --output-dir runs/priors --prior ring+mixture",
)
def spirals(
    *,
    output_dir: options.OutputDir = Path("runs/spirals"),
    steps: options.Steps = 10_000,
    seed: options.Seed = 0,
    latent_dim: options.LatentDim = 4,
    batch_size: options.BatchOf200 = 50,
    prior: options.Priors = None,
    diagnose: options.Diagnose = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Fit noisy spirals, reconstruct and extrapolate held-out ones, and score both.

    Writes metrics.json, posterior.nc (for ArviZ) and figures as PNG.
    """
    with _reported("spirals"):
        from np_latentode.studies import spirals as study

        _keep_compiled_programs()
        study.run(
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


@app.command(
    short_help="Study of the patients of the Mayo PBC trial.",
    epilog="\b\nExample:\n  np-latentode clinical --output-dir runs/clinical --splits 1",
)
def clinical(
    *,
    output_dir: options.OutputDir = Path("runs/clinical"),
    splits: options.Splits = 5,
    steps: options.StepsOfEach = 6_000,
    overwrite: options.Overwrite = False,
) -> None:
    """Forecast held-out patients of the Mayo PBC trial, beside mixed models and the last value.

    The second half of each held-out patient's visits is forecast from the first half, for seven
    labs. Writes metrics.json and figures as PNG.

    \b
    Needs:  pip install 'np-latentode[data]'
    """
    with _reported("clinical"):
        from np_latentode.studies import clinical as study

        _keep_compiled_programs()
        study.run(output_dir, splits=splits, steps=steps, overwrite=overwrite)


@app.command(
    short_help="Study of the simulated hopper.",
    epilog="\b\nExample:\n"
    "  np-latentode hopper --task extrapolation --observed 0.1 --protocol paper \\\n"
    "    --output-dir runs/hopper",
)
def hopper(
    *,
    output_dir: options.OutputDir = Path("runs/hopper"),
    task: options.Task = "interpolation",
    observed: options.Observed = 0.1,
    protocol: options.Protocol = "paper",
    trajectories: options.NumTrajectories = 10_000,
    steps: options.StepsOfTask = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Repeat one cell of table 3 of Rubanova, Chen & Duvenaud (2019), beside trivial baselines.

    Writes metrics.json and figures as PNG. Trajectories are simulated once, in half a minute, and
    kept in ~/.cache/np_latentode.

    \b
    Needs:  pip install 'np-latentode[hopper]'
    """
    with _reported("hopper"):
        from np_latentode.studies import hopper as study

        _keep_compiled_programs()
        study.run(
            output_dir,
            task=task,
            observed=observed,
            protocol=protocol,
            num_trajectories=trajectories,
            steps=steps,
            seed=seed,
            overwrite=overwrite,
        )


@app.command(
    short_help="Study of systems of Physiome-ODE.",
    epilog="\b\nExample:\n  np-latentode physiome --set LI01 --folds 1 --output-dir runs/LI01",
)
def physiome(
    *,
    set: options.Set,
    output_dir: options.OutputDir = Path("runs/physiome"),
    folds: options.Folds = 5,
    steps: options.StepsOfEach = 6_000,
    members: options.MembersOfOne = 1,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Forecast the second half of simulated solutions from the first, as in Physiome-ODE (2025).

    The data are made from the published equations: WOD01, LEN01, GUP01, LI01 or HOD01. Writes
    metrics.json and figures as PNG, and prints the scores beside those that are published.
    """
    with _reported("physiome"):
        from np_latentode.studies import physiome as study

        _keep_compiled_programs()
        given: dict[str, Any] = dict(folds=folds, steps=steps, members=members, seed=seed)
        study.run(output_dir, set, **given, overwrite=overwrite)


@contextmanager
def _reported(command: str) -> Iterator[None]:
    """Reports a warning in one line, and an error in one sentence, and exits with its code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            said: set[str] = set()

            def say_once(message: Warning | str, *_: Any) -> None:
                text = " ".join(str(message).split())
                if text not in said:
                    said.add(text)
                    typer.echo(f"np-latentode {command}: {text}", err=True)

            warnings.showwarning = say_once
            yield
    except KeyboardInterrupt:
        again = (
            " The same command goes on from its last checkpoint, if there is one."
            if command == "fit"
            else ""
        )
        typer.echo(f"np-latentode {command}: interrupted.{again}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        typer.echo(f"np-latentode {command}: {error}", err=True)
        given = isinstance(error, (ValueError, ImportError, FileNotFoundError))
        raise typer.Exit(2 if given else 1) from error


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, separated by commas; got {text!r}.") from error


def _keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that a second run starts in seconds."""
    import jax

    from np_latentode.storage.cache import cache_dir

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # Of two commands, one may read what the other has not yet written as a whole. It compiles.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
