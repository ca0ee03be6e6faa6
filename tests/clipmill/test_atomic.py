"""Local files are whole or absent."""

from pathlib import Path

import pytest

from clipmill.atomic import atomic_path, is_temporary, temporary_name, write_text


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert is_temporary(temporary.name)
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.mp4", "old")

    def fail() -> None:
        with atomic_path(tmp_path / "a.mp4", keep_suffix=True) as temporary:
            assert temporary.suffix == ".mp4"
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"


def test_names_are_unique() -> None:
    assert temporary_name("a") != temporary_name("a")
    assert not is_temporary("a.tmp")
