"""The command line as scripts see it: exit codes, JSON on stdout alone, one sentence on stderr, signals."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

from curation.dataset.tables import Dataset
from pipelines import cli
from pipelines.cli_shared import BAD_REQUEST, NOTHING_CAME_OUT, PARTIAL
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP_OPTION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "in"
    folder.mkdir()
    write_video(folder / "a.mp4", panning(height=90, pixels_per_frame=1, frames=60))
    (folder / "b.mp4").write_bytes(b"")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["clipmill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_the_whole_way(videos: Path, tmp_path: Path, monkeypatch, capsys, local_ray):
    out = tmp_path / "out"
    assert run(monkeypatch, "curate", videos, "--out", out, *WITHOUT_CLIP_OPTION) == 0
    printed = capsys.readouterr().out
    assert "1 empty" not in printed
    assert "rejected: the file is empty" in printed
    assert run(monkeypatch, "select", out) == 2
    assert "(left out: --without aesthetic)" in capsys.readouterr().err
    assert run(monkeypatch, "select", out, "--allow-missing") == 0
    assert "1 of 1 clips" in capsys.readouterr().out
    assert run(monkeypatch, "shard", out, "--selection", "svd-paper") == 0
    assert run(monkeypatch, "status", out, "--json") == 0
    *_, line = capsys.readouterr().out.strip().splitlines()
    inspection = json.loads(line)
    assert (inspection["sources"], inspection["rejected"], inspection["clips"]) == (2, {"empty": 1}, 1)
    assert inspection["shards"]["svd-paper"]["totals"]["samples"] == 1


def test_shards_without_some_of_the_selected_clips_have_their_own_exit_code(
    videos: Path, tmp_path: Path, monkeypatch, capsys, local_ray
):
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(videos, folder)
    for name in ("c.mp4", "d.mp4"):
        shutil.copy(videos / "a.mp4", folder / name)
    (tmp_path / "all.yaml").write_text("name: all\nrules: {duration_s: {min: 0}}\n")
    (tmp_path / "shards.yaml").write_text("clips_per_shard: 50\nextraction: {crf: 12, limits: {timeout_s: 60}}\n")
    assert run(monkeypatch, "curate", folder, "--out", out, *WITHOUT_CLIP_OPTION) == 0
    assert run(monkeypatch, "select", out, "--config", tmp_path / "all.yaml") == 0
    sharding = ("shard", out, "--selection", "all", "--config", tmp_path / "shards.yaml", "--seed", 3)
    assert run(monkeypatch, *sharding) == 0
    config = json.loads((out / "shards" / "all" / "index.json").read_text())["config"]
    assert (config["extraction"]["crf"], config["clips_per_shard"], config["seed"]) == (12, 50, 3)
    shutil.rmtree(out / "shards")
    (folder / "c.mp4").unlink()
    dataset = Dataset(str(out))
    with dataset.connect() as connection:
        (replaced,) = connection.execute("SELECT source_id FROM sources WHERE uri LIKE '%d.mp4'").fetchall()
    for table_name in ("sources", "clips"):
        for part in dataset.parts(table_name):
            table = dataset.read_part(table_name, part)
            dataset.write_part(table_name, part, table.filter(pc.not_equal(table["source_id"], replaced[0])))
    capsys.readouterr()
    assert run(monkeypatch, *sharding) == PARTIAL
    printed = capsys.readouterr()
    assert "1 of 3 selected clips were written: 1 failed, 1 are no longer in the dataset" in printed.err
    assert "not written: the clip is no longer in the dataset" in " ".join(printed.out.split())
    index = json.loads((out / "shards" / "all" / "index.json").read_text())
    assert {key: index["totals"][key] for key in ("selected", "samples", "failed", "gone")} == {
        "selected": 3, "samples": 1, "failed": 1, "gone": 1
    }  # fmt: skip
    assert [clip["error_kind"] for clip in (*index["failed"], *index["gone"])] == ["missing", "gone"]
    assert run(monkeypatch, "status", out) == 0
    assert "partial: 2 of 3 selected clips missing (1 failed, 1 gone)" in " ".join(capsys.readouterr().out.split())
    assert run(monkeypatch, *sharding[:4], "--images", "--clips-per-shard", 5) == 2
    assert "images_per_shard" in capsys.readouterr().err


def test_a_selection_without_clips_has_its_own_exit_code(videos: Path, tmp_path: Path, monkeypatch, capsys, local_ray):
    out, rules = tmp_path / "out", tmp_path / "none.yaml"
    rules.write_text("rules: {motion: {min: 10000}}\n")
    assert run(monkeypatch, "curate", videos, "--out", out, *WITHOUT_CLIP_OPTION) == 0
    assert run(monkeypatch, "select", out, "--config", rules) == NOTHING_CAME_OUT
    assert "no clip passed" in capsys.readouterr().err
    assert run(monkeypatch, "shard", out, "--selection", "none") == 2
    assert "is empty; there is nothing to write" in capsys.readouterr().err


def test_rejected_sources_are_tried_again_when_asked(videos: Path, tmp_path: Path, monkeypatch, capsys, local_ray):
    out, config = tmp_path / "out", tmp_path / "hurry.yaml"
    config.write_text("scan: {limits: {timeout_s: 0.01}}\n")
    assert run(monkeypatch, "curate", videos, "--out", out, *WITHOUT_CLIP_OPTION, "--config", config) == 2
    assert run(monkeypatch, "curate", videos, "--out", out, *WITHOUT_CLIP_OPTION) == 2
    assert run(monkeypatch, "curate", videos, "--out", out, *WITHOUT_CLIP_OPTION, "--retry-rejected") == 0
    assert "2 scanned in this run, 0 earlier" in capsys.readouterr().out


def test_inspect_prints_one_line_of_json_per_video(videos: Path, monkeypatch, capsys):
    assert run(monkeypatch, "inspect", *WITHOUT_CLIP_OPTION, videos, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["error_kind"] for line in lines] == [None, "empty"]
    for line in lines:
        assert list(line) == ["uri", "source", "transitions", "clips", "refused_cuts", "error_kind", "error"]
    assert run(monkeypatch, "inspect", *WITHOUT_CLIP_OPTION, videos / "b.mp4") == 2
    printed = capsys.readouterr()
    assert "rejected, empty" in printed.out
    assert "no usable input" in printed.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("curate", "{videos}", "--out", "/proc/nothing", *WITHOUT_CLIP_OPTION), "cannot write"),
        (("curate", "{videos}/*.mov", "--out", "{out}", *WITHOUT_CLIP_OPTION), "no file matches"),
        (("curate", "nothing.csv", "--out", "{out}"), "does not exist"),
        (("curate", "{videos}", "--out", "{videos}", *WITHOUT_CLIP_OPTION), "not a dataset and contains other files"),
        (("curate", "{videos}", "--out", "{out}", "--config", "none.yaml"), "file not found"),
        (("curate", "{videos}", "--out", "{out}", "--limit", "0"), "--limit"),
        (("status", "{videos}"), "is not a dataset"),
        (("shard", "{videos}", "--selection", "x"), "is not a dataset"),
        (
            ("curate", "{videos}", "--out", "{out}"),
            "weights of CLIP model ViT-L-14 (openai) are not on",
        ),
        (("curate", "{videos}", "--out", "{out}", "--without", "similarty"), "Did you mean 'similarity'?"),
        (("duplicates", "{videos}"), "is not a dataset"),
        (("curate",), "inputs"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_2_and_a_sentence(
    videos: Path, tmp_path: Path, monkeypatch, capsys, local_ray, arguments, sentence: str
):
    filled = [a.format(videos=videos, out=tmp_path / "out") for a in arguments]
    assert run(monkeypatch, *filled) == BAD_REQUEST
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_modules_are_imported_leaves_no_traceback(how: signal.Signals):
    script = f"""
import builtins, os, signal, sys
from clipmill.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
find = builtins.__import__
def interrupted(name, *rest):
    if name == "typer":
        os.kill(os.getpid(), {how.value})
    return find(name, *rest)
builtins.__import__ = interrupted
sys.argv = ["clipmill", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_130_and_leaves_nothing_behind(tmp_path: Path, how: signal.Signals):
    (tmp_path / "in").mkdir()
    for i in range(40):
        write_video(tmp_path / "in" / f"{i}.mp4", panning(height=90, pixels_per_frame=1, frames=60, seed=i))
    command = [sys.executable, "-m", "pipelines.cli", "curate", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command += WITHOUT_CLIP_OPTION
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    sources = tmp_path / "out" / "sources"
    while process.poll() is None and not list(sources.glob("*.parquet")):
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
