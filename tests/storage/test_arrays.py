"""Arrays come back from disk bit for bit, and damaged ones are noticed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode.storage.arrays import digest, fill, packed, read, unpacked, write

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


def test_what_was_packed_for_another_process_comes_back_bit_for_bit():
    arrays = unpacked(packed(TREE))
    assert arrays["['wide']"].dtype == np.float64
    filled = fill(TREE, arrays, name="x")
    assert digest(filled["weights"]) == digest(TREE["weights"])
    assert filled["other key"] == TREE["other key"]
    assert (arrays["['none yet']"].shape, arrays["['none yet']"].dtype) == ((0, 2), np.int8)


# After a failed read, orbax's threads find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_file_is_noticed_or_changes_nothing(tmp_path):
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
