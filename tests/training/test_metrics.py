"""The loss by noise level, and the log across resumptions."""

import json
from pathlib import Path

import torch

from training.metrics import Log, Meter, by_noise_level


def test_losses_are_told_apart_by_noise_level() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([-2.5, -2.5, 0.5]).exp())
    assert by_noise_level(meter.sums()) == {"below -2": 2.0, "0 to 1": 10.0}


def test_what_a_killed_run_logged_beyond_its_checkpoint_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    log = Log(tmp_path, 1)
    log.write({"step": 2, "loss": 0.25, "loss_by_ln_sigma": {"below -2": 1.0}})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.25]
