"""Ray starts a failed group of workers anew: one is killed with -9, and the run ends as if none had been."""

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipmill.errors import RunStopped, UserError
from pipelines.train import resolve_stage, train
from pipelines.train_on_ray import train_on_ray
from svd.checkpoint import load_model
from tests.pipelines.test_kill import kill, workers
from tests.pipelines.test_train import SETTINGS, model_at
from tests.training import shards
from training.stages import Stage, overlay

pytestmark = pytest.mark.slow

STEPS = 12


@pytest.fixture
def stage() -> Stage:
    """Of one sample per rank, gradients unclipped: two ranks then compute, bit by bit, what one does in two turns."""
    changes = [
        f"run.steps={STEPS}", "run.log_every=1", "run.save_every=3", "run.keep_last=9", "run.sample_every=null",
        "data.batch_size=1", "optimizer.clip_norm=1e9",
    ]  # fmt: skip
    return resolve_stage("tiny-image-to-video", None, [*SETTINGS, *changes])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as Ray gives a worker: sums are then added up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killer(threading.Thread):
    """Kills one of the workers that train for this process, as soon as `checkpoint` is whole."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(daemon=True)
        self.checkpoint, self.seen_ns, self.found, self.over = checkpoint, 0, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            if self.checkpoint.is_dir():
                self.seen_ns = written_ns(self.checkpoint)
                training = sorted(pid for pid, name in workers(os.getpid()) if name.startswith("ray::RayTrainWorker"))
                self.found = len(training)
                if training:
                    kill(random.Random(7).choice(training))
                return


def written_ns(checkpoint: Path) -> int:
    return (checkpoint / "checkpoint.json").stat().st_mtime_ns


def losses(out: Path) -> list[float]:
    """The losses of metrics.jsonl, which has to have every step once."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["loss"] for record in records]


def test_the_group_of_a_killed_worker_goes_on_from_the_newest_checkpoint(
    stage: Stage,
    tmp_path: Path,
    one_thread: None,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    data, init, out = tmp_path / "data", model_at(tmp_path / "init", "svd"), tmp_path / "killed"
    clip = shards.video(24)
    shards.write_shard(data / "clips-0.tar", [shards.sample(f"{i}", clip) for i in range(6)])
    train(stage, str(data), tmp_path / "calm", init=init, device="cpu", quiet=True)
    killer = Killer(out / "checkpoints" / "step-00000003")
    killer.start()
    try:
        model = train_on_ray(stage, str(data), out, workers=2, init=init, device="cpu")
    finally:
        killer.over.set()
    assert killer.found == 2, "no worker was killed"
    assert written_ns(killer.checkpoint) == killer.seen_ns, "the run began anew"
    assert losses(out) == losses(tmp_path / "calm")
    assert load_model(model).config.task == "image-to-video"
    assert not list(out.glob("checkpoints/*.tmp"))
    assert f"{STEPS}/{STEPS} steps after" in capsys.readouterr().err


def test_what_every_start_would_meet_again_ends_the_run_at_once(stage: Stage, tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "data").mkdir()
    init = model_at(tmp_path / "init", "svd")
    with pytest.raises(UserError, match=r"^no shards: no \*.tar in the folder") as caught:
        train_on_ray(stage, str(tmp_path / "data"), tmp_path / "out", workers=1, init=init, device="cpu")
    assert not isinstance(caught.value, RunStopped)


def test_what_ray_can_never_carry_out_is_refused(stage: Stage, tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(UserError, match="is not divisible into batches"):
        train_on_ray(stage, str(tmp_path), tmp_path / "out", workers=3, device="cpu")
    many = overlay(stage, {"run": {"batch_size": 1000}})
    with pytest.raises(UserError, match=r"expected a CPU for each of 1000 workers, got \d+; lower --ray-workers"):
        train_on_ray(many, str(tmp_path), tmp_path / "out", workers=1000, device="cpu")
