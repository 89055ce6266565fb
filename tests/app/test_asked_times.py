"""Times that are asked for, beside those of the table fitted."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
from flax import nnx

from np_latentode import Trajectories, latent_ode
from np_latentode.app.asked_times import When

COLUMNS = dict(id="who", time="day", values=["x"])


def table(clock):
    """Two ids from day 0 to 8, and to day 10."""
    days = np.arange(0, 11, 2)
    rows = pd.DataFrame(
        {
            "who": ["a"] * 5 + ["b"] * 6,
            "day": [*days[:5], *days],
            "x": np.arange(11.0) % 3,
        }
    )
    if clock == "dates":
        rows["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rows["day"], unit="D")
    return rows


@functools.cache
def fitted_on(clock):
    trajectories = Trajectories.from_dataframe(table(clock), **COLUMNS)
    return latent_ode(trajectories, latent_dim=2, rngs=nnx.Rngs(0))[0], trajectories


@pytest.mark.parametrize(
    ("clock", "asked", "said"),
    [
        ("numbers", When(ahead=5.0), None),
        ("numbers", When(until="15"), None),
        ("numbers", When(until="16"), "until leads .* for 2 of 2, for who a to 16,.* at 10: noth"),
        ("numbers", When(ahead=6.5), "ahead leads .* for 1 of 2, for who b to 16.5,.* at 10: noth"),
        ("numbers", When(on=["3,40"]), "on leads .* for 2 of 2, for who a to 40, where training"),
        ("dates", When(until="2024-01-16"), None),
        ("dates", When(until="2024-02-01"), "who a to 2024-02-01, .* ended at 2024-01-11: nothing"),
    ],
)
def test_times_more_than_half_the_length_of_a_table_beyond_its_end_are_warned_of(
    clock, asked, said
):
    model, trajectories = fitted_on(clock)
    if said:
        with pytest.warns(UserWarning, match=said):
            asked.times(model, trajectories)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked.times(model, trajectories)
