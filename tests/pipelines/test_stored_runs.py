"""Everything of a training in an object store: shards, latents, the initial model, two runs one after another."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from clipmill.errors import UserError
from pipelines.cache_latents import cache_latents
from pipelines.cli import app
from pipelines.train import resolve_stage, train
from pipelines.train_on_ray import train_on_ray
from svd.checkpoint import load_model
from tests.pipelines.test_train import SETTINGS, model_at
from tests.pipelines.test_train_restart import one_thread  # noqa: F401 - a fixture
from tests.training import shards
from tests.training.test_remote_shards import upload
from training import remote_shards
from training.run_folder import latest_step, local_model
from training.run_stage import finished
from training.stages import overlay
from training.stopping import StopRequest

pytestmark = pytest.mark.slow

STAGE = "tiny-image-to-video"


def files_at(url: str) -> dict[str, bytes]:
    fs, folder = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return {path.removeprefix(f"{folder}/"): fs.cat_file(path) for path in fs.find(folder)}


def test_a_run_in_a_bucket_ends_as_on_a_disk_and_starts_the_next(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    clips, init, local = tmp_path / "clips", model_at(tmp_path / "init", "svd"), tmp_path / "run"
    clip = shards.video(24)
    shards.write_shard(clips / "clips-0.tar", [shards.sample(f"{i}", clip) for i in range(4)])
    upload(clips, f"{s3_url}/shards")
    upload(init, f"{s3_url}/init")
    train(resolve_stage(STAGE, None, SETTINGS), str(clips), local, init=init, quiet=True)

    url = f"{s3_url}/run"
    arguments = ["train", "--stage", STAGE, "--data", f"{s3_url}/shards", "--out", url, "--init", f"{s3_url}/init"]
    for setting in SETTINGS:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"trained: {url}/model" in result.output.replace("\n", "")
    there, here = files_at(url), {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    assert {name for name in there if "tfevents" not in name} == {name for name in here if "tfevents" not in name}
    for name in (name for name in here if name.startswith("model/")):
        assert there[name] == (local / name).read_bytes()
    assert there["samples/step-00000004.png"] == (local / "samples" / "step-00000004.png").read_bytes()
    settings = json.loads(there["stage.json"])
    assert (settings["shards"], settings["init"]) == (f"{s3_url}/shards", f"{s3_url}/init")
    assert finished(url) == f"{url}/model"

    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert again.exit_code == 0, again.output
    longer = CliRunner().invoke(app, [*arguments, "--set", "run.steps=6"], catch_exceptions=False)
    assert longer.exit_code == 0, longer.output
    assert "from step 4 of 6" in longer.output
    with pytest.raises(UserError, match=rf"^{url} was started with different settings \(optimizer\.lr: was 0\.0001, "):
        CliRunner().invoke(app, [*arguments, "--set", "optimizer.lr=0.5"], catch_exceptions=False)
    with local_model(url) as path:
        assert path is not None
        assert load_model(path).config.task == "image-to-video"
    assert not list((tmp_path / "caches" / "clipmill").glob("*/*/rank-*"))
    assert not list((tmp_path / "caches" / "clipmill" / "models").glob("*"))


def test_latents_are_cached_from_a_bucket_to_a_bucket(
    tmp_path: Path, s3_url: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    clips, init = tmp_path / "clips", model_at(tmp_path / "init", "svd")
    clip = shards.video(24)
    for i in range(2):
        shards.write_shard(clips / f"clips-{i}.tar", [shards.sample(f"{i}-{j}", clip) for j in range(2)])
    upload(clips, f"{s3_url}/shards")
    stage, url, local = resolve_stage(STAGE, None, SETTINGS), f"{s3_url}/latents", tmp_path / "latents"
    run = cache_latents(stage, f"{s3_url}/shards", url, init=init, quiet=True)
    here = cache_latents(stage, str(clips), local, init=init, quiet=True)
    assert (run.folder, run.samples, run.bytes) == (url, here.samples, here.bytes)
    there = files_at(url)
    for path in local.glob("*.tar"):
        assert there[path.name] == path.read_bytes()
    moved = cache_latents(stage, str(clips), url, init=init, quiet=True)
    assert moved == run, "clips that moved from the bucket to a disk are not encoded again"
    assert {name: content for name, content in files_at(url).items() if name.endswith("tar")} == {
        name: content for name, content in there.items() if name.endswith("tar")
    }
    monkeypatch.setattr(remote_shards, "read_range", None)  # no headers: index.json has the offsets of latents
    result = train(stage, url, tmp_path / "run", init=init, quiet=True)
    assert result == tmp_path / "run" / "model"


@pytest.mark.usefixtures("one_thread")
def test_ray_workers_train_into_a_bucket(
    tmp_path: Path, s3_url: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a file in the bucket, as the driver writes it on Ctrl-C, then resumed to the losses of a disk."""
    clips, init = tmp_path / "clips", model_at(tmp_path / "init", "svd")
    clip = shards.video(24)
    shards.write_shard(clips / "clips-0.tar", [shards.sample(f"{i}", clip) for i in range(4)])
    upload(clips, f"{s3_url}/shards")
    stage = resolve_stage(STAGE, None, [*SETTINGS, "run.log_every=1"])
    train(stage, str(clips), tmp_path / "run", init=init, device="cpu", quiet=True)
    url = f"{s3_url}/run"
    where: dict[str, Any] = {"workers": 1, "init": init, "device": "cpu", "quiet": True}
    monkeypatch.setattr(StopRequest, "asked", lambda _: True)  # of the driver: workers are processes of their own
    with pytest.raises(KeyboardInterrupt):
        train_on_ray(overlay(stage, {"run": {"steps": 10_000}}), f"{s3_url}/shards", url, **where)
    monkeypatch.undo()
    assert latest_step(url)
    assert "stop" not in files_at(url)
    steps = max(6, latest_step(url) + 2)
    model = train_on_ray(overlay(stage, {"run": {"steps": steps}}), f"{s3_url}/shards", url, **where)
    assert model == f"{url}/model"
    there, here = (
        [json.loads(line)["loss"] for line in text.splitlines()]
        for text in (files_at(url)["metrics.jsonl"], (tmp_path / "run" / "metrics.jsonl").read_bytes())
    )
    assert there[: len(here)] == here
    assert len(there) == steps
