"""ArviZ's leave-one-out scores of a DataTree, against closed forms."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
from arviz_stats import loo_pit
from scipy import stats
from still import DATA, KEY, NOISE, make_fitted

from np_latentode import to_datatree


@pytest.fixture(scope="module")
def leave_one_out():
    """az.loo of draws from an exact guide, and the closed form for each observation."""
    tree = to_datatree(KEY, make_fitted(), DATA, num_samples=1_000)
    log_density, pit = [], []
    for x, seen in zip(np.asarray(DATA.values), np.asarray(DATA.mask), strict=True):
        found = np.full((2, *x.shape), np.nan)
        for d in range(2):
            y = x[seen[:, d], d]
            precision = np.linalg.inv(NOISE**2 * np.eye(len(y)) + 1)
            # One entry of a normal given all others: Rasmussen & Williams (2006), (5.10) to (5.12).
            sd = 1 / np.sqrt(np.diag(precision))
            gap = precision @ y * sd**2
            found[:, seen[:, d], d] = stats.norm.logpdf(gap, 0, sd), stats.norm.cdf(gap / sd)
        log_density.append(found[0][seen])
        pit.append(found[1][seen])
    return tree, np.concatenate(log_density), np.concatenate(pit)


# Where a trajectory has a single observation, the posterior without it is the prior, which the
# draws do not cover, and ArviZ warns.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.slow
def test_leave_one_out_is_the_closed_form(leave_one_out):
    tree, exact, _ = leave_one_out
    loo = az.loo(tree, pointwise=True)
    assert loo.n_data_points == len(exact) == int(DATA.mask.sum())
    trusted = np.asarray(loo.pareto_k) <= loo.good_k
    error = (np.asarray(loo.elpd_i) - exact)[trusted]
    assert trusted.mean() > 0.98
    assert np.sqrt(np.mean(error**2)) < 0.06
    assert abs(error.mean()) < 5e-3


@pytest.mark.slow
def test_the_leave_one_out_pit_is_the_closed_form(leave_one_out):
    tree, _, exact = leave_one_out
    pit = loo_pit(tree)["x"]
    np.testing.assert_allclose(pit, exact, atol=0.12)
    az.plot_loo_pit(tree)
    az.plot_ppc_dist(tree, num_samples=5)
    plt.close("all")
