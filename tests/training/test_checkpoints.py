"""What is written is there as a whole, comes back bit for bit, and is known when damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode.storage.arrays import digest, fill, read, write
from np_latentode.training.checkpoints import Checkpoints

resource = pytest.importorskip("resource", reason="there are no limits to set")

TREE = {
    "weights": {0: jnp.arange(6.0).reshape(2, 3), 2: jnp.ones(3)},
    "key": jax.random.key(7),
    "count": np.int32(3),
    "wide": np.array([1 / 3], np.float64),
    "other key": jax.random.key(7, impl="rbg"),
    "none yet": np.zeros((0, 2), np.int8),
}


def test_what_was_written_comes_back_bit_for_bit(tmp_path):
    write(tmp_path / "x", TREE, {"units": [0.1, 1e-300]})
    arrays, settings = read(tmp_path / "x")
    assert settings == {"units": [0.1, 1e-300]}
    assert arrays["['wide']"].dtype == np.float64
    filled = fill(TREE, arrays, name="x")
    assert jax.tree.structure(filled) == jax.tree.structure(TREE)
    assert digest(filled["weights"]) == digest(TREE["weights"])
    assert filled["key"] == TREE["key"]
    assert filled["other key"] == TREE["other key"]
    assert filled["other key"].dtype == TREE["other key"].dtype
    assert (arrays["['none yet']"].shape, arrays["['none yet']"].dtype) == ((0, 2), np.int8)
    with pytest.raises(ValueError, match="path must be new"):
        write(tmp_path / "x", TREE, {})


# The threads of orbax that could not read find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damaged_file_is_noticed_or_of_no_account(tmp_path):
    write(tmp_path / "x", TREE, {"a": 1})
    intact = digest(read(tmp_path / "x")[0])
    noticed = 0
    for file in sorted(p for p in (tmp_path / "x").rglob("*") if p.is_file()):
        whole = file.read_bytes()
        flipped = bytes([whole[-1] ^ 1]) if whole else b""
        for damaged in (whole[: len(whole) // 2], whole[:-1] + flipped, b"", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            try:
                arrays, settings = read(tmp_path / "x")
            except ValueError as error:
                noticed += "must be whole, and written by np_latentode" in str(error)
            else:
                assert (digest(arrays), settings) == (intact, {"a": 1})
            file.write_bytes(whole)
    assert noticed > 10


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is none"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must be whole, and written by np_latentode"):
        read(tmp_path)


def test_arrays_of_another_program_are_refused(tmp_path):
    write(tmp_path / "x", {"a": jnp.ones(3)}, {})
    arrays, _ = read(tmp_path / "x")
    with pytest.raises(ValueError, match=r"x must have the parameters of .*\['a'\].*\['b'\]"):
        fill({"b": jnp.ones(3)}, arrays, name="x")
    with pytest.raises(ValueError, match=r"got \(3,\) at \['a'\], not \(4,\)"):
        fill({"a": jnp.ones(4)}, arrays, name="x")


# The threads of orbax that could not write find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", {})
    checkpoints.save(1, TREE)
    intact = checkpoints.latest()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        with pytest.raises(OSError, match="000000002 cannot be written"):
            checkpoints.save(2, TREE | {"much": np.random.default_rng(0).normal(size=100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["000000001"]
    assert set(Checkpoints(tmp_path / "c", {}).latest()) == set(intact)
    for name, array in Checkpoints(tmp_path / "c", {}).latest().items():
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
