"""Latents computed once: the same training as from the clips, done again only where something is missing."""

import json
from pathlib import Path

import pytest

from curation.errors import UserError
from pipelines.encode import encode
from pipelines.train import resolve_stage, train
from tests.pipelines.test_train import SETTINGS, model_at
from tests.training import shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    clip = shards.video(24)
    for i in range(2):
        samples = [shards.sample(f"{i}-{j}", clip) for j in range(2)]
        shards.write_shard(folder / f"clips-{i}.tar", samples)
    shards.write_shard(folder / "clips-2.tar", [shards.sample("short", shards.video(2))])
    return folder


def test_latents_are_written_once_and_train(data: Path, tmp_path: Path, local_ray: None) -> None:
    stage, init, out = resolve_stage("tiny-image-to-video", None, SETTINGS), tmp_path / "init", tmp_path / "latents"
    model_at(init, "svd")
    run = encode(stage, str(data), out, init=init, quiet=True)
    assert (run.shards, run.samples) == (3, 4)
    assert list(run.failed) == ["clips-2/short"]
    assert "too_short" in run.failed["clips-2/short"]
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "clips-1.json").unlink()
    assert encode(stage, str(data), out, init=init, quiet=True) == run
    again = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert [name for name in times if again[name] != times[name]] == ["clips-1.tar"]

    train(stage, str(out), tmp_path / "latent", init=init, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "latent" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    other = resolve_stage("tiny-image-to-video", None, [*SETTINGS, "data.frames=2"])
    with pytest.raises(UserError, match=r"made otherwise \(data.frames\)"):
        encode(other, str(data), out, init=init, quiet=True)
