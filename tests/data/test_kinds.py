"""The kind of a column is guessed from its values, with caution, or given."""

import numpy as np
import pandas as pd
import pytest

from np_latentode import Limits, Trajectories
from np_latentode.data.guesses import check_kinds, choose_kinds, guess_kinds
from np_latentode.data.kinds import all_fit

RNG = np.random.default_rng(0)
COUNT = 200


def read(column, **options):
    df = pd.DataFrame({"who": np.arange(len(column)) // 4, "day": np.arange(len(column))})
    df["x"] = np.asarray(column, float)
    return Trajectories.from_dataframe(df, id="who", time="day", values=["x"], **options)


BITS = RNG.integers(0, 2, COUNT)
SEIZURES = RNG.poisson(RNG.gamma(1.0, 1.5, COUNT))

COLUMNS = {
    "zeros and ones": (BITS, "bernoulli"),
    "zeros and ones, often missing": (np.where(np.arange(COUNT) % 3, np.nan, BITS), "bernoulli"),
    "only zeros": (np.zeros(COUNT), "numbers"),
    "only ones": (np.ones(COUNT), "numbers"),
    "ones and twos": (1 + BITS, "numbers"),
    "minus one and one": (2 * BITS - 1, "numbers"),
    "0, 0.5 and 1": (np.arange(COUNT) % 3 / 2, "numbers"),
    "counts": (SEIZURES, "counts"),
    "ages": (RNG.integers(0, 95, COUNT), "numbers"),
    "ages of children": (RNG.integers(0, 18, COUNT), "numbers"),
    "ranks from 1": (1 + np.arange(COUNT) % 10, "numbers"),
    "ranks from 0": (np.arange(COUNT) % 11, "numbers"),
    "grades from 0 to 3": (RNG.choice(4, COUNT, p=[0.3, 0.3, 0.2, 0.2]), "numbers"),
    "a pain score": (RNG.binomial(10, 0.5, COUNT), "numbers"),
    "platelets": (RNG.integers(80, 500, COUNT), "numbers"),
    "days": (30 * (np.arange(COUNT) % 4), "numbers"),
    "doses": (RNG.choice([0, 5, 10, 20], COUNT, p=[0.5, 0.2, 0.2, 0.1]), "numbers"),
    "costs": (np.where(RNG.uniform(size=COUNT) < 0.5, 0, RNG.integers(0, 4_000, COUNT)), "numbers"),
    "negative counts": (SEIZURES - 1, "numbers"),
    "halves": (SEIZURES / 2, "numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "kind"), COLUMNS.values(), ids=COLUMNS.keys())
def test_the_guess_is_cautious(column, kind):
    assert guess_kinds(read(column)) == {"x": kind}


def test_a_logarithm_is_a_number():
    assert guess_kinds(read(1 + BITS, log=["x"])) == {"x": "numbers"}


def test_a_kind_that_is_given_counts_more_than_the_guess():
    assert choose_kinds(read(BITS), {}) == {"x": "bernoulli"}
    for kind in ("bernoulli", "counts", "numbers"):
        assert choose_kinds(read(BITS), {"x": kind}) == {"x": kind}


BAD = {
    "an unknown column": (
        (read(BITS), {"y": "counts"}),
        r"^kind must name columns among values, \['x'\]; got \['y'\]\.$",
    ),
    "an unknown kind": (
        (read(BITS), {"x": "binary"}),
        r"^kind must be one of bernoulli, counts, numbers; got 'binary' for 'x'\.$",
    ),
    "a count of a logarithm": (
        (read(1 + BITS, log=["x"]), {"x": "counts"}),
        r"^kind must be numbers for a column in log, \['x'\]; got 'counts' for 'x'\.$",
    ),
    "a two among zeros and ones": (
        (read([0, 1, 1, 0, 1, 2]), {"x": "bernoulli"}),
        r"^data must be 0 or 1 in column 'x', as its kind is bernoulli; got 2 for who 1\.$",
    ),
    "a half count": (
        (read([0, 1.5, 3, 4]), {"x": "counts"}),
        r"^data must be counts, 0, 1, 2, \.\.\. in column 'x', as its kind is counts; got 1.5 for "
        r"who 0\.$",
    ),
    "counts far from 0": (
        (read(1_000_000 + BITS), {"x": "counts"}),
        r"^data must vary by more than a thousandth of its level in column 'x', as its kind is "
        r"counts; got values close to 1e\+06\.$",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD.keys())
def test_a_kind_that_cannot_be_is_refused_in_a_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        choose_kinds(*given)


def test_another_table_is_called_by_its_name():
    with pytest.raises(ValueError, match=r"^new\.csv must be 0 or 1 in column 'x'"):
        check_kinds(read([0, 3]), {"x": "bernoulli"}, data="new.csv")


def test_draws_of_zeros_and_ones_are_told_from_others():
    draws = np.stack([BITS, SEIZURES, RNG.normal(size=COUNT)], axis=-1).astype(float)
    np.testing.assert_array_equal(all_fit("bernoulli", draws), [True, False, False])
    np.testing.assert_array_equal(all_fit("counts", draws), [True, True, False])
    assert not all_fit("bernoulli", np.where(draws == 1, np.nan, draws)).any()
    assert not all_fit("bernoulli", draws[:0]).any()


@pytest.mark.parametrize(
    ("given", "came"),
    [
        ({"error": [[[0.1], [0.0]]]}, "1 standard errors"),
        ({"limits": Limits([[[np.nan], [1.0]]], [[[np.nan], [3.0]]])}, "1 limits"),
        (
            {"error": [[[0.1], [0.2]]], "limits": Limits([[[1.0], [np.nan]]], [[[3.0], [np.nan]]])},
            "1 limits and 2 standard errors",
        ),
    ],
)
def test_what_is_inexact_is_named_and_only_a_fit_gives_advice(given, came):
    data = Trajectories([[0.0, 1.0]], [[[1.0], [2.0]]], **given)
    rule = "must hold neither limits, such as <0.5, nor standard errors in column 'x_0', as its"
    with pytest.raises(ValueError, match=f"{rule} .* got {came}[.] Say --kind x_0=numbers[.]$"):
        choose_kinds(data, {"x_0": "counts"})
    with pytest.raises(ValueError, match=f"{rule} .* got {came}[.]$"):
        check_kinds(data, {"x_0": "counts"})
