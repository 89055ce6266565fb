"""The latest checkpoint is kept, and nothing else in the directory is touched."""

import jax
import numpy as np
import pytest

from np_latentode.training.checkpoints import Checkpoints

resource = pytest.importorskip("resource", reason="there are no limits to set")

TREE = {
    "weights": np.arange(6.0).reshape(2, 3),
    "key": jax.random.key(7),
    "none yet": np.zeros((0, 2), np.int8),
}


# After a failed write, orbax's threads find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", {})
    checkpoints.save(1, TREE)
    intact = checkpoints.latest()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        with pytest.raises(OSError, match="000000002 cannot be written"):
            checkpoints.save(2, TREE | {"many": np.random.default_rng(0).normal(size=100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    # On a busy machine, orbax's threads may write a little more; whoever goes on removes it.
    again = Checkpoints(tmp_path / "c", {})
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["000000001"]
    assert set(again.latest()) == set(intact)
    for name, array in again.latest().items():
        np.testing.assert_array_equal(array, intact[name])


def test_the_latest_is_kept_and_what_was_not_finished_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", {"steps": 2})
    assert checkpoints.latest() is None
    for step in (5, 10):
        checkpoints.save(step, {"step": np.full(2, step)})
    (tmp_path / "c" / "000000015.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path / "c", {"steps": 2})
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["000000010"]
    assert again.latest()["['step']"].tolist() == [10, 10]
    with pytest.raises(ValueError, match=r"same training; .* differs in steps"):
        Checkpoints(tmp_path / "c", {"steps": 3}).latest()


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "other.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2024").mkdir()
    with pytest.raises(ValueError, match=r"which holds 2024, other.*, thesis\.tex"):
        Checkpoints(tmp_path, {})
    with pytest.raises(ValueError, match="got a file"):
        Checkpoints(tmp_path / "thesis.tex", {})
    assert len([*tmp_path.iterdir()]) == 3
