"""Names are split at commas, but for those that hold commas themselves."""

import pandas as pd
import pytest

from np_latentode.app.column_names import named_kinds, named_values, split_names
from np_latentode.data.files import write_table


def split(*texts, known=()):
    return split_names("values", texts, lambda: known)


@pytest.mark.parametrize(
    ("texts", "known", "names"),
    [
        (["a,b"], ["a", "b", "c"], ["a", "b"]),
        ([" a , b ", "c"], ["a", "b", "c"], ["a", "b", "c"]),
        (["a,b"], ["a,b"], ["a,b"]),
        (["a,b"], ["a, b", "a,b"], ["a,b"]),
        (["a, b,c"], ["a, b", "c"], ["a, b", "c"]),
        (["a,b,c,d"], ["a", "b,c", "d", "c"], ["a", "b,c", "d"]),
        (['"a,b",c'], ["a", "b", "a,b", "c"], ["a,b", "c"]),
        (['a, "b, c"'], [], ["a", "b, c"]),
        (['"say ""a"""'], [], ['say "a"']),
        (['5" pipe,c'], [], ['5" pipe', "c"]),
        (["a,b"], ["a", "c"], ["a", "b"]),
        (["3"], [], ["3"]),
        ([], ["a"], []),
    ],
)
def test_names_are_those_of_the_table(texts, known, names):
    assert split(*texts, known=known) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bili,", "values must be names separated by commas; got 'bili,'."),
        (",", "values must be names separated by commas; got ','."),
        ("", "values must be names separated by commas; got ''."),
        ("a,,b", "values must be names separated by commas; got 'a,,b'."),
        ('"a,b', "values must close each quote at the end of a name; got '\"a,b'."),
        ('"a"b,c', "values must close each quote at the end of a name; got '\"a\"b,c'."),
    ],
)
def test_a_text_that_names_nothing_is_refused_in_a_sentence(text, message):
    with pytest.raises(ValueError, match=r"^values must") as caught:
        split(text, known=["a", "b"])
    assert str(caught.value) == message


def test_a_text_that_can_be_split_in_two_ways_is_refused():
    message = r"in one way; got 'a,b', which may mean \['a', 'b'\] or \['a,b'\]\. Quote a name"
    with pytest.raises(ValueError, match=message):
        split("a,b", known=["a", "b", "a,b"])


def test_the_table_is_read_only_where_there_are_commas(tmp_path):
    names = dict(id="who", time="day", feature=None, value=None)
    found = named_values(tmp_path / "none.csv", ["x"], ["x"], **names)
    assert found == {"values": ["x"], "log": ["x"]}
    with pytest.raises(FileNotFoundError):
        named_values(tmp_path / "none.csv", ["x,y"], None, **names)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".xlsx", ".parquet", ".nc"])
def test_names_with_commas_are_found_in_every_format(tmp_path, ending):

    path = tmp_path / f"data{ending}"
    write_table(pd.DataFrame({"who": ["a"], "day": [1.0], "b, total": [1.0], "c": [2.0]}), path)
    names = dict(id="who", time="day", feature=None, value=None)
    found = named_values(path, ["b, total,c"], ["b, total"], **names)
    assert found["values"] == ["b, total", "c"]
    assert found["log"] == ["b, total"]
    long = pd.DataFrame({"who": "a", "day": 1.0, "test": ["b, total", "c"], "result": 1.0})
    write_table(long, path)
    names |= dict(feature="test", value="result")
    assert named_values(path, ["b, total,c"], ["b, total"], **names) == found
    assert named_values(path, None, ["b, total"], **names)["log"] == ["b, total"]


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (None, {}),
        (["edema=bernoulli"], {"edema": "bernoulli"}),
        (["a=counts, b = numbers", "c=counts"], {"a": "counts", "b": "numbers", "c": "counts"}),
        (["Protein, total=numbers,a=counts"], {"Protein, total": "numbers", "a": "counts"}),
        (['"Protein, total"=numbers'], {"Protein, total": "numbers"}),
        (["a=b=counts"], {"a=b": "counts"}),
        (["a=binary"], {"a": "binary"}),
    ],
)
def test_kinds_are_named_after_their_columns(texts, kinds):
    assert named_kinds(texts) == kinds


@pytest.mark.parametrize("text", ["", "edema", "edema=counts,", "edema=counts,b", ","])
def test_a_text_that_says_no_kind_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"^kind must be column=kind, separated .*; got '.*'\.$"):
        named_kinds([text])


def test_a_column_of_two_kinds_is_refused():
    with pytest.raises(ValueError, match=r"^kind must name each column once; got 'a' twice\.$"):
        named_kinds(["a=counts", "a=numbers"])


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (["a=b"], {"a=b": "constant"}),
        (["a=b=event,dose=linear"], {"a=b": "event", "dose": "linear"}),
        (["dose = event"], {"dose": "event"}),
        (["dose"], {"dose": "constant"}),
    ],
)
def test_kinds_of_inputs_are_named_after_their_columns(tmp_path, texts, kinds):
    columns = {"who": ["a"], "day": [1.0], "a=b": [1.0], "dose": [2.0], "x": [0.0]}
    write_table(pd.DataFrame(columns), tmp_path / "data.csv")
    names = dict(id="who", time="day", feature=None, value=None)
    assert named_values(tmp_path / "data.csv", ["x"], None, None, texts, **names)["inputs"] == kinds


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("dose=event,dose=linear", r"inputs must name each column once; got 'dose' twice\."),
        ("dose=bolus", "inputs must be of the kinds constant, linear, event; got 'bolus'"),
    ],
)
def test_inputs_that_say_nothing_clear_are_refused(tmp_path, text, rule):
    write_table(pd.DataFrame({"who": ["a"], "day": [1.0], "dose": [2.0]}), tmp_path / "data.csv")
    names = dict(id="who", time="day", feature=None, value=None)
    with pytest.raises(ValueError, match=rule):
        named_values(tmp_path / "data.csv", ["x"], None, None, [text], **names)
