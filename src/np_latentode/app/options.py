"""The arguments and options of the commands, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Ahead",
    "At",
    "BatchOf200",
    "BatchSize",
    "Between",
    "Data",
    "DataOfEffect",
    "Diagnose",
    "Draws",
    "Errors",
    "Every",
    "Feature",
    "Holdout",
    "Id",
    "Inference",
    "InferenceOfFit",
    "Inputs",
    "Kinds",
    "Known",
    "LatentDim",
    "LatentDimOfNetwork",
    "Level",
    "Log",
    "Members",
    "MostSteps",
    "NumTrajectories",
    "Observed",
    "Of",
    "On",
    "OnDisk",
    "Origins",
    "Output",
    "OutputDir",
    "Overwrite",
    "OverwriteFiles",
    "OverwriteFit",
    "Patience",
    "Plan",
    "Plot",
    "PlotEffect",
    "Points",
    "PointsOfEffect",
    "Priors",
    "Protocol",
    "Quantiles",
    "Recalibrate",
    "Residual",
    "Run",
    "Seed",
    "SeedOfAll",
    "SeedOfDraws",
    "Since",
    "Split",
    "Splits",
    "Static",
    "Steps",
    "StepsOfEach",
    "StepsOfTask",
    "Task",
    "Thresholds",
    "Time",
    "Unit",
    "Until",
    "UntilLast",
    "Value",
    "Values",
    "Window",
]

OutputDir = Annotated[
    Path, typer.Option(help="Directory of the results; must be new, unless --overwrite.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run as a whole.")
]
Seed = Annotated[int, typer.Option(help="Seed of the networks and of training.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps.")]
LatentDim = Annotated[int, typer.Option(min=1, help="Dimension of the latent state.")]

# of `fit`
Data = Annotated[
    Path,
    typer.Argument(
        help="A .csv, .csv.gz, .tsv, .xlsx, .parquet or .nc file: one row per visit, or one per "
        "measurement with --feature and --value."
    ),
]
Id = Annotated[str, typer.Option(help="Column of the ids: who was observed.")]
Time = Annotated[
    str, typer.Option(help="Column of the times: numbers, or dates such as 2020-01-31.")
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns of the measured values, separated by commas or repeated. They hold numbers, "
        "or limits such as <0.5, >120 and 1..2, and are empty where nothing was measured. A name "
        "with a comma may be quoted, as in '\"a,b\",c'. With --feature: the entries of that column "
        "to read. Left out, all of them are."
    ),
]
Feature = Annotated[
    str | None,
    typer.Option(
        help="In a table with one row per measurement, the column that says what was measured."
    ),
]
Value = Annotated[
    str | None, typer.Option(help="In such a table, the column of the results; needs --feature.")
]
Log = Annotated[
    list[str] | None,
    typer.Option(help="Those of the values to model by their logarithm; they must be positive."),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="What columns hold, as in edema=bernoulli,seizures=counts; separated by commas or "
        "repeated. bernoulli: 0 or 1; counts: 0, 1, 2, ..., negative binomial; numbers: all else.  "
        "[default: guessed from the values, and printed]",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        help="Count the times of each id from its own start: first, its first row; or the name of "
        "a column with a time for each id, such as a birth. Default: one clock for all ids."
    ),
]
Static = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns of what does not change within an id, such as age at entry, sex or arm; "
        "separated by commas or repeated. Numbers or categories, empty where not known; where "
        "categories are numbers, say diet=category. Forecasts depend on them."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns of what is given over time and known ahead, separated by commas or repeated, "
        "each with its kind: dose=event for amounts given at once, temp=linear for what is "
        "interpolated, treated or treated=constant for what holds until the next row. Forecasts "
        "depend on them, past and future."
    ),
]
Errors = Annotated[
    list[str] | None,
    typer.Option(
        "--error",
        help="Known standard errors of values, in the same units and in a column of their own, as "
        "in bili=bili_sd; separated by commas or repeated. The noise of the model is what comes on "
        "top.",
    ),
]
Unit = Annotated[
    str | None,
    typer.Option(
        help="Unit in which dates are counted: W, D, h, m or s. Ignored for numeric times.  "
        "[default: D]"
    ),
]
Window = Annotated[
    float | None,
    typer.Option(
        help="For long series: train on windows of this length, and forecast from the last one of "
        "each id. In the unit of the times. Default: each id is taken whole."
    ),
]
OnDisk = Annotated[
    bool,
    typer.Option(
        "--on-disk",
        help="For a .parquet file that is larger than memory, with the rows of each id one after "
        "the other: read it once, and train on some ids at a time.",
    ),
]
Holdout = Annotated[
    float, typer.Option(help="Share of the ids to hold out and to score forecasts of.")
]
Origins = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of times from which each id held out is forecast: 1 is at half of its visits; "
        "5 are at a sixth, two sixths, ... of them.",
    ),
]
Residual = Annotated[
    str,
    typer.Option(
        help="ou: deviations from the path of the ODE last for a while (an Ornstein-Uhlenbeck "
        "process); none: they are white noise."
    ),
]
Inference = Annotated[
    str,
    typer.Option(
        help="How forecasts infer the latent state of an id. guide: by the guide alone; sharpened: "
        "go on from there to the posterior; exact: NUTS, slow; auto: guide, if backbones weigh "
        "most; else guide or sharpened, whichever forecasts better what was left out."
    ),
]
LatentDimOfNetwork = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Fit a network with this dimension of the latent state, and nothing else.  "
        "[default: what the data suggest: a backbone that starts as a mixed model, and a network]",
    ),
]
Members = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Trainings of each candidate, each without one part of the ids, which judges it. "
        "Their forecasts are mixed.  [default: 5, or 3 for 500 ids to train on with 40,000 values "
        "or more]",
    ),
]
Recalibrate = Annotated[
    bool,
    typer.Option(
        help="Widen or narrow the bands, so that they hold the values that were left out."
    ),
]
MostSteps = Annotated[
    int,
    typer.Option(
        min=1,
        help="Highest number of training steps of each member. A quarter of them is taken first, "
        "and the others only if it still gets better at the end of these.",
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        min=1, help="Stop after this many steps without a better score of what is left out."
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Ids per step; a few more if their lengths differ much.")
]
SeedOfAll = Annotated[
    int, typer.Option(help="Seed of the networks, of training, and of the ids held out.")
]
Split = Annotated[
    int | None,
    typer.Option(
        "--split",
        help="Seed of the ids held out, to compare fits on the same ones.  [default: --seed]",
    ),
]
OverwriteFit = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of another fit as a whole.")
]

# of `forecast`
Run = Annotated[Path, typer.Argument(help="The output directory of `fit`.")]
Known = Annotated[
    Path,
    typer.Argument(help="A table with what is known of each id, with the columns of the fit."),
]
Until = Annotated[
    str | None,
    typer.Option(
        help="The last time to forecast, a number or a date. Give this or --ahead, --on or --at."
    ),
]
Ahead = Annotated[
    float | None,
    typer.Option(
        help="How far to forecast beyond each id's last measurement; for dates, in the unit of the "
        "fit. Give this or --until, --on or --at."
    ),
]
Points = Annotated[
    int | None, typer.Option(min=1, help="Times per id, evenly spaced.  [default: 50]")
]
Every = Annotated[
    float | None,
    typer.Option(
        help="In place of --points, the distance of the times, from each id's last measurement to "
        "--until or --ahead; for dates, in the unit of the fit."
    ),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        help="Forecast every id at these times, numbers or dates, separated by commas or repeated."
    ),
]
At = Annotated[
    Path | None,
    typer.Option(
        help="A table of the times to forecast, with the columns of ids and times of the fit; or "
        "with that of times alone, for all ids."
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        help="Such as 'bili > 2', or with <, >= or <=; can be repeated. Writes when it is crossed "
        "into .crossing and .first_crossing files beside the output. Who is beyond it already has "
        "the first of the times. A crossing between two of the "
        "times is not seen, so take them dense."
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        help="Table of ids, times and inputs, such as future doses, that are given besides those "
        "in DATA."
    ),
]
Quantiles = Annotated[
    str,
    typer.Option(help="Quantiles of new observations, between 0 and 1, separated by commas."),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The file to write, ending as `fit` reads them.")
]
Draws = Annotated[int, typer.Option(min=2, help="Draws from the posterior predictive.")]
InferenceOfFit = Annotated[
    str | None,
    typer.Option(
        "--inference",
        help="guide, sharpened or exact, as in fit.  [default: what fit has chosen]",
    ),
]
SeedOfDraws = Annotated[int, typer.Option(help="Seed of the draws.")]
Plot = Annotated[
    bool, typer.Option("--plot", help="Also draw the first four ids, in a .png of the same name.")
]
OverwriteFiles = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]

# of `effect`
Of = Annotated[str, typer.Option(help="The static covariate, by the name of its column.")]
Between = Annotated[
    str | None,
    typer.Option(
        help="Two of its entries, separated by a comma: the effect is that of the second, compared "
        "with the first. Left out: the two categories; of numbers, one more unit."
    ),
]
Level = Annotated[float, typer.Option(help="Level of the band, between 0 and 1.")]
UntilLast = Annotated[
    str | None,
    typer.Option(
        "--until", help="The last time, a number or a date.  [default: the latest in the table]"
    ),
]
PointsOfEffect = Annotated[int, typer.Option("--points", min=1, help="Times, evenly spaced.")]
DataOfEffect = Annotated[
    Path,
    typer.Argument(help="A table with the columns of the fit, such as that which was fitted."),
]
PlotEffect = Annotated[
    bool, typer.Option("--plot", help="Also draw the effect, in a .png of the same name.")
]

# of the studies
BatchOf200 = Annotated[int, typer.Option(min=1, max=200, help="Trajectories per step, of 200.")]
Priors = Annotated[
    list[str] | None,
    typer.Option(
        help="Also fit under this prior, and compare with N(0, I). One of: mixture, flow, circle, "
        "ring; circle or ring joined with the prior of the other dimensions, as in ring+mixture; a "
        "flow over one of these, as in flow/ring+mixture. Can be repeated."
    ),
]
Diagnose = Annotated[
    bool,
    typer.Option(
        "--diagnose",
        help="Also check guide and bands by exact posteriors: writes diagnosis.txt, exact.nc, "
        "predictions into posterior.nc, and figures. Takes two more minutes.",
    ),
]
Splits = Annotated[int, typer.Option(min=1, help="Number of splits, with the seeds 0, 1, ...")]
StepsOfEach = Annotated[
    int, typer.Option(min=1, help="Highest number of training steps of each member, as in fit.")
]
Set = Annotated[str, typer.Option("--set", help="The system: WOD01, LEN01, GUP01, LI01, HOD01.")]
Folds = Annotated[int, typer.Option(min=1, help="Number of folds: 0, 1, ...")]
MembersOfOne = Annotated[
    int,
    typer.Option(
        "--members", min=1, help="Trainings of each candidate, whose forecasts are mixed."
    ),
]
Task = Annotated[str, typer.Option(help="interpolation or extrapolation.")]
Observed = Annotated[
    float,
    typer.Option(help="Share of the points that is seen; the paper has 0.1, 0.2, 0.3 and 0.5."),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="paper: extrapolate from the first 100 of 200 states. released: from the first 66, "
        "as the code released with the paper does."
    ),
]
NumTrajectories = Annotated[
    int,
    typer.Option(
        "--trajectories",
        min=5,
        help="Trajectories for training and test together; the paper has 10,000.",
    ),
]
StepsOfTask = Annotated[
    int | None,
    typer.Option(min=1, help="Training steps.  [default: 25,000; 12,000 for extrapolation]"),
]
