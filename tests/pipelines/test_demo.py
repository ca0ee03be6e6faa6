"""`make demo` as a newcomer runs it, and runs it again."""

from pathlib import Path

import pytest

from curation.tables import Dataset
from pipelines.demo.__main__ import run
from tests.pipelines.corpora import many_small


def test_the_demo_runs_and_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None):
    for _ in range(2):
        run(tmp_path, [], 2)
        printed = capsys.readouterr().out
        assert "what happened" in printed
        assert "not_video" in printed
        assert "decode_error" in printed
    with Dataset(str(tmp_path / "rendered")).connect() as connection:
        assert connection.execute("SELECT count(*) FROM sources").fetchone() == (4,)


def test_the_demo_takes_your_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str], local_ray: None):
    for name in ("one", "other"):
        run(tmp_path, [str(many_small(tmp_path / name, 2))], 0)
    assert "1 samples" in capsys.readouterr().out
