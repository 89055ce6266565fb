"""All checks of a fit at once: an exact guide passes them, a narrow one does not."""

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from still import DATA, KEY, MODEL, SCALING, Summary

from np_latentode import AmortizedGuide, Fitted
from np_latentode.studies.diagnosis import diagnose

pytestmark = pytest.mark.usefixtures("compile_quickly")


class Scaled(nnx.Module):
    """The exact posterior, rescaled by a parameter, so that both guides are one program."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, features):
        loc, sd = jnp.split(features, 2, axis=-1)
        return dist.Normal(loc, self.scale[...] * sd).to_event(1)


GUIDE = AmortizedGuide(Summary(), Scaled(), scaling=SCALING)
SCALES = {"exact": 1.0, "narrow": 0.5}


@pytest.fixture(scope="module", params=SCALES)
def found(request):
    params = {"posterior$params": {"scale": jnp.asarray(SCALES[request.param])}}
    fitted = Fitted(MODEL, GUIDE, params)
    return request.param, diagnose(KEY, fitted, DATA[:10], cut=2.5, many=DATA, progress=False)


@pytest.mark.slow
def test_an_exact_guide_passes_and_a_narrow_one_fails(found):
    name, (metrics, _, _, text) = found
    right = name == "exact"
    assert (metrics["pareto_k_median"] < 0.5) == right
    assert (metrics["elbo_gap_median"] < 0.05) == right
    assert (min(metrics["sbc_p_values"]) > 0.01) == right
    assert (abs(metrics["coverage_90_forecasts"] - 0.9) < 0.03) == right
    assert metrics["pareto_k_trusted_sharpened"] == 1
    assert min(metrics["sbc_p_values_sharpened"]) > 0.01
    assert text.splitlines()[-1].startswith("guide is" if right else "sharpened is")
    # NUTS and sharpening start from the guide, but do not depend on its quality.
    assert metrics["rhat_worst"] < 1.01
    assert metrics["shift_median_sharpened"] < 0.1
    assert metrics["crps_sharpened"] == pytest.approx(metrics["crps_exact"], rel=0.02)
    for words in ("coverage of", "Pareto k median", "ranks of 300 simulations", "worst R-hat"):
        assert words in text


@pytest.mark.slow
def test_it_leaves_figures_and_the_exact_draws(found, tmp_path):
    _, (_, figures, exact, _) = found
    assert set(figures) == {"fans", "calibration", "ranks", "pareto_k", "guide"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture.std() > 0.02
    assert exact["posterior"]["z0"].shape[2:] == (10, 2)
    assert np.isfinite(exact["posterior"]["z0"]).all()
