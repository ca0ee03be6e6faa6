"""Addresses of plug-ins: anything but a file of source text is an error at once."""

import os
from pathlib import Path

import pytest

from clipmill.errors import UserError
from clipmill.plugins import find_plugin


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("/dev/zero", "device"), ("pipe.py", "pipe"), ("folder.py", "folder"), ("none.py", "No such")],
)
def test_a_file_that_cannot_be_source_text(tmp_path: Path, name: str, sentence: str):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UserError, match=sentence):
        find_plugin(f"{tmp_path / name}:Brightness", group="clipmill.scorers", built_in={})
