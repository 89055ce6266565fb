"""How many members a fit has, if nobody says it."""

import numpy as np
import pandas as pd
import pytest

from np_latentode.app import fit_table as module
from np_latentode.app.fit_table import fit_table


def table(num_ids, num_times):
    ids, times = (x.ravel() for x in np.mgrid[:num_ids, :num_times])
    return pd.DataFrame({"id": ids, "time": times, "x": np.sin(ids + times), "y": np.cos(ids)})


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [((60, 4), {}, 5), ((640, 40), {}, 3), ((640, 40), {"members": 2}, 2)],
    ids=["few ids", "many ids with many values", "asked for"],
)
def test_there_are_five_members_and_three_where_a_wide_network_is_one(
    size, given, expected, tmp_path, monkeypatch, capsys
):
    table(*size).to_csv(tmp_path / "table.csv", index=False)
    asked = []

    def stop(*_, num_folds, **__):
        asked.append(num_folds)
        raise OSError("stopped")

    monkeypatch.setattr(module, "cross_fit", stop)
    columns = dict(id="id", time="time", values=["x", "y"])
    with pytest.raises(OSError, match="stopped"):
        fit_table(tmp_path / "table.csv", tmp_path / "run", **columns, **given)
    assert asked == [expected]
