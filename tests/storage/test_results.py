"""A result directory is there as a whole, or not at all."""

import pytest

from np_latentode.storage.results import MARKER, check_output_dir, result_dir


def write(path, text, **options):
    with result_dir(path, **{"overwrite": False} | options) as directory:
        (directory / MARKER).write_text(text)


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_results_appear_under_their_name_with_nothing_beside_them(tmp_path):
    write(tmp_path / "deep" / "run", "{}")
    assert names(tmp_path / "deep") == ["run"]
    assert names(tmp_path / "deep" / "run") == [MARKER]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", "{}")
    assert names(tmp_path) == ["run"]


def test_earlier_results_are_refused_without_overwrite(tmp_path):
    write(tmp_path / "run", "first")
    with pytest.raises(ValueError, match=r"output-dir must be new.*--overwrite"):
        write(tmp_path / "run", "second")
    assert (tmp_path / "run" / MARKER).read_text() == "first"
    assert names(tmp_path) == ["run"]


def test_earlier_results_are_replaced_as_a_whole(tmp_path):
    write(tmp_path / "run", "first")
    (tmp_path / "run" / "old.png").write_text("old")
    write(tmp_path / "run", "second", overwrite=True)
    assert names(tmp_path / "run") == [MARKER]
    assert (tmp_path / "run" / MARKER).read_text() == "second"
    assert names(tmp_path) == ["run"]


def test_a_failure_leaves_earlier_results_as_they_were(tmp_path):
    write(tmp_path / "run", "first")
    with pytest.raises(TypeError, match="str"):
        write(tmp_path / "run", 2, overwrite=True)
    assert (tmp_path / "run" / MARKER).read_text() == "first"
    assert names(tmp_path) == ["run"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name, rule in (("home", "left alone"), ("file", "directory"), ("link", "link")):
        with pytest.raises(ValueError, match=rule):
            check_output_dir(tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_noticed_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output-dir must be where files can be written; got"):
        check_output_dir(tmp_path / "file" / "run", overwrite=False)
