"""Training metrics: metrics.jsonl, TensorBoard scalars, and the loss by noise level."""

import json
import resource
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipmill.atomic import write_text
from training.batch import without_waiting

METRICS = "metrics.jsonl"
"""Log file inside the run folder."""
NOISE_LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Bounds, in ln sigma, of the noise level bins for the loss."""

_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bf16 FLOP/s (a multiply-add counts as two) by substring of the device name, from vendor data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the device, or the process's RSS on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Meter:
    """Running sums between log lines. Tensors accumulate on the device without synchronization."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(2, len(NOISE_LEVELS) + 1, device=self._device)
        self._started_s, self.data_wait_s, self.steps = time.perf_counter(), 0.0, 0

    def add(self, loss_B: Tensor, sigma_B: Tensor) -> None:
        """Add per-sample losses; their noise levels are on the CPU."""
        levels = without_waiting(torch.bucketize(sigma_B.log(), torch.tensor(NOISE_LEVELS)), self._device)
        self._sums[0].index_add_(0, levels, loss_B.detach().float())
        self._sums[1].index_add_(0, levels, torch.ones_like(loss_B, dtype=torch.float32))

    def sums(self) -> Tensor:
        """Sum of losses and number of samples per noise level bin: (2, levels), to be all-reduced."""
        return self._sums

    def seconds(self) -> float:
        return time.perf_counter() - self._started_s

    def state_dict(self) -> dict[str, Any]:
        """State since the last line, for checkpoints."""
        return {
            "sums": self._sums.cpu(),
            "steps": self.steps,
            "seconds": self.seconds(),
            "data_wait_s": self.data_wait_s,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._sums = state_dict["sums"].to(self._device)
        self.steps, self.data_wait_s = state_dict["steps"], state_dict["data_wait_s"]
        self._started_s = time.perf_counter() - state_dict["seconds"]


def by_noise_level(sums: Tensor) -> dict[str, float]:
    """Mean loss per non-empty noise level bin, from `Meter.sums`."""
    bounds = [f"{bound:g}" for bound in NOISE_LEVELS]
    names = [f"below {bounds[0]}", *(f"{a} to {b}" for a, b in pairwise(bounds))]
    names.append(f"above {bounds[-1]}")
    means = (sums[0] / sums[1]).tolist()
    return {name: mean for name, mean, count in zip(names, means, sums[1].tolist(), strict=True) if count}


class Log:
    """Writes metrics.jsonl and TensorBoard events. On resume at `step`, entries of later steps from a killed run are
    removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            lines = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
            write_text(self._path, "".join(f"{line}\n" for line in lines))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line; numbers, also those nested one level, become scalars."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        step = int(record["step"])
        for name, value in record.items():
            if isinstance(value, Mapping):
                for part, number in value.items():
                    self._board.add_scalar(f"{name}/{part}", number, step)
            elif isinstance(value, int | float) and name != "step":
                self._board.add_scalar(name, value, step)

    def picture(self, name: str, image_HWC: Any, step: int) -> None:
        self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    """Step of a line; a truncated last line sorts after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
