"""Reports are written into the dataset, wherever it is."""

import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from pipelines.cli import app
from pipelines.report import report, report_at_end
from tests.curation.report.datasets import make
from tests.curation.report.test_model import unpacked as unpacked_data


def unpacked(page: Path) -> tuple[dict[str, Any], bytes]:
    [data] = re.findall(r'id="data">([^<]*)', page.read_text())
    return unpacked_data(data)


def test_a_report_in_an_object_store_is_that_on_a_disk(tmp_path: Path, s3_url: str) -> None:
    make(tmp_path / "dataset", 20)
    make(f"{s3_url}/dataset", 20)
    here, there = report(str(tmp_path / "dataset")), report(f"{s3_url}/dataset")
    assert there.file == f"{s3_url}/dataset/report/all.html"
    assert (there.clips, there.shown, there.with_pictures) == (here.clips, here.shown, here.with_pictures) == (20,) * 3
    fs = fsspec.filesystem("s3")
    bucket = s3_url.removeprefix("s3://")
    assert fs.ls(f"{bucket}/dataset/report") == [f"{bucket}/dataset/report/all.html"]
    assert fs.info(f"{bucket}/dataset/report/all.html", refresh=True)["ContentType"] == "text/html"
    data = re.compile(rb'id="pictures">[^<]*')
    pages = (Path(here.file).read_bytes(), fs.cat(f"{bucket}/dataset/report/all.html"))
    assert data.findall(pages[0]) == data.findall(pages[1]) != []


def test_the_page_has_the_costs_of_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make(tmp_path / "dataset", 5)
    record = {"command": "curate", "started_at": "t", "wall_s": 9.0, "cpus": 2, "gpus": 1}
    record["stages"] = {"scan": {"cpu_s": 4.0}, "video": {"cpu_s": 1.5, "gpu_s": 3.0, "tokens_in": 7}}
    costs = dataset.file("costs", "a.json")
    storage.write_json(dataset.fs, costs, record)
    header, _ = unpacked(Path(report(dataset.url).file))
    spent = [(cost["stage"], cost["cpu_s"], cost["gpu_s"]) for cost in header["overview"]["costs"]]
    assert spent == [("scan", 4.0, 0.0), ("video", 1.5, 3.0)]
    storage.write_bytes(dataset.fs, costs, b"{")
    header, _ = unpacked(Path(report(dataset.url).file))
    assert header["overview"]["costs"] == []
    assert header["overview"]["cpu_s"]["scan_cpu_s"] == 10.0
    assert "costs/a.json is damaged" in capsys.readouterr().err


def test_a_report_that_fails_at_the_end_of_a_run_does_not_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_at_end(str(tmp_path / "absent")) is None
    assert "could not be written" in capsys.readouterr().err
    make(tmp_path / "dataset", 5)
    (tmp_path / "dataset/report").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        report(str(tmp_path / "dataset"))
    assert report_at_end(str(tmp_path / "dataset")) is None
    assert Dataset(str(tmp_path / "dataset")).description()


def test_open_shows_local_pages_and_says_where_others_are(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    make(tmp_path / "dataset", 5)
    make(f"{s3_url}/dataset", 5)
    assert CliRunner().invoke(app, ["report", str(tmp_path / "dataset"), "--open"]).exit_code == 0
    assert shown == [(tmp_path / "dataset/report/all.html").as_uri()]
    result = CliRunner().invoke(app, ["report", f"{s3_url}/dataset", "--open"])
    assert (result.exit_code, len(shown)) == (0, 1)
    assert "a browser cannot open" in result.output
