"""Latents computed once: the same training as from the clips, done again only where something is missing."""

import json
from pathlib import Path

import pytest

from clipmill.errors import EmptyResult, RunStopped, UserError
from pipelines.cache_latents import _Job, _result, cache_latents, cache_planned
from pipelines.fence import Fence, owned
from pipelines.train import resolve_stage, train
from tests.pipelines.test_train import SETTINGS, model_at
from tests.training import shards
from training.shard_index import index_shards

pytestmark = pytest.mark.slow


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
    run = cache_latents(stage, str(data), out, init=init, quiet=True)
    assert (run.shards, run.samples) == (3, 4)
    assert list(run.failed) == ["clips-2/short"]
    assert "too_short" in run.failed["clips-2/short"]
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "clips-1.json").unlink()
    assert cache_latents(stage, str(data), out, init=init, quiet=True) == run
    again = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert [name for name in times if again[name] != times[name]] == ["clips-1.tar"]

    train(stage, str(out), tmp_path / "latent", init=init, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "latent" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    other = resolve_stage("tiny-image-to-video", None, [*SETTINGS, "data.frames=2"])
    with pytest.raises(
        UserError, match=r"latents was started with different settings \(data\.frames: was \d+, now 2\)"
    ):
        cache_latents(other, str(data), out, init=init, quiet=True)

    with owned(str(out)) as fence:
        assert cache_latents(stage, str(data), out, init=init, quiet=True) == run, "nothing to do takes nothing over"
        fence.check()
        (out / "clips-1.json").unlink()
        half = out / ".clips-1.tar.0123456789ab.tmp"
        half.write_bytes(b"half")
        with pytest.raises(UserError, match="in use by another run"):
            cache_latents(stage, str(data), out, init=init, quiet=True)
        assert half.exists()
        assert cache_latents(stage, str(data), out, init=init, take_over=True, quiet=True) == run
        assert not half.exists()
        shard = next(shard for shard in index_shards(str(data)).shards if shard.name == "clips-1")
        with pytest.raises(RunStopped, match="another run now owns"):
            cache_planned(shard, 0, _Job(stage=stage, init=init, out=out, digests={}, augmentations_per_clip=2), fence)
    (out / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        cache_latents(stage, str(data), out, init=init, quiet=True)


def test_an_overtaken_run_gives_no_shard_its_name(data: Path, tmp_path: Path) -> None:
    init, out = tmp_path / "init", tmp_path / "latents"
    model_at(init, "svd")
    job = _Job(
        stage=resolve_stage("tiny-image-to-video", None, SETTINGS),
        init=init,
        out=out,
        digests={},
        augmentations_per_clip=1,
    )
    shard = index_shards(str(data)).shards[0]

    class Overtaken(Fence):
        """Another run takes over while the latents are computed."""

        def check(self) -> None:
            if list(out.glob(".*.tmp")):
                raise RunStopped("another run now owns it")

    with pytest.raises(RunStopped, match="another run"):
        cache_planned(shard, 0, job, Overtaken(url="", run=""))
    assert not list(out.iterdir())


def test_latents_of_shards_that_are_gone_are_named(data: Path, tmp_path: Path) -> None:
    """Training reads every tar of the folder, so they would stay in the set."""
    init, out = tmp_path / "init", tmp_path / "latents"
    model_at(init, "svd")
    out.mkdir()
    (out / "clips-0.tar").touch()
    (out / "clips-7.tar").touch()
    with pytest.raises(UserError, match=r"latents of shards that are not in .* \(clips-7\.tar\)"):
        cache_latents(resolve_stage("tiny-image-to-video", None, SETTINGS), str(data), out, init=init, quiet=True)


def test_latents_of_no_sample_are_an_empty_result():
    failed = [{"shard": "a.tar", "clip_id": "x", "error_kind": "decode_error", "error": "no frame"}]
    content = {"totals": {"shards": 1, "samples": 0, "bytes": 0}, "failed": failed}
    with pytest.raises(EmptyResult, match="no sample could be cached: a/x: decode_error: no frame"):
        _result(content, "out")
