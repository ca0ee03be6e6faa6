"""Checkpoints by torch.distributed.checkpoint: each rank writes its part in the background, and a whole one is renamed
to its name only when all parts are there.

    CHECKPOINTS/step-00000500/       weights, optimiser and average, readable with another number of ranks
    CHECKPOINTS/step-00000500/rank-0.pt      of each rank, where its data went on, and what it has yet to log
    CHECKPOINTS/step-00001000.tmp/   not whole: being written, or left by a run that was killed

DCP's own index is a pickle; `training.checkpoint_index` reads it without running code. What a run exports at its end is
safetensors.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

from clipmill.errors import RunStopped
from training.checkpoint_index import INDEX, IndexReader, read_index
from training.distributed import Process
from training.ema import Ema

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""
_METADATA = "checkpoint.json"
_LOG = logging.getLogger("clipmill.training")


class CheckpointError(RunStopped):
    """A checkpoint that could not be written, or does not fit this run; names the last whole one."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint holds, beside the place in the data."""

    network: nn.Module
    trained: Mapping[str, nn.Parameter]
    """The optimiser's, as they were when it was made: FSDP2 puts others in their place while they are gathered."""
    optimizer: Optimizer
    ema: Ema | None

    def tensors(self) -> dict[str, Any]:
        """All tensors by name; those of the optimiser are made, as zeros, where it has not stepped yet."""
        moments = {name: self._moments(parameter) for name, parameter in self.trained.items()}
        tensors: dict[str, Any] = {"weights": self.network.state_dict(), "optimizer": moments}
        return tensors | ({"average": dict(self.ema.average)} if self.ema else {})

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.optimizer.state[parameter]
        if not state:
            device = parameter.device if self.optimizer.defaults.get("fused") else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return cast("dict[str, Tensor]", state)


@dataclass
class Checkpoints:
    """The checkpoints of one run. Every rank has one of these and calls it in the same steps."""

    folder: Path
    process: Process
    keep_last: int = 2
    keep_every: int | None = None
    _group: Any = field(init=False)
    _pending: tuple[int, Future[Any]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # A group of its own: the background's messages must not get between those of the training step.
        self._group = dist.new_group(backend="gloo")

    def latest(self) -> Path | None:
        """The newest whole one."""
        return next(reversed(complete_checkpoints(self.folder)), None)

    def save(self, step: int, state: State, rank_state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begin to write the state after `step` steps, and what is this rank's `own`; training may go on at once.

        First waits for the one before. Raises CheckpointError if that could not be written.
        """
        self.wait()
        temporary = self._temporary(step)
        try:
            if self.process.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                (temporary / _METADATA).write_text(
                    json.dumps({"step": step, "world_size": self.process.world_size, **metadata})
                )
            dist.barrier(group=self._group)
            torch.save(dict(rank_state), temporary / f"rank-{self.process.rank}.pt")
            future = dcp.async_save(state.tensors(), checkpoint_id=temporary, process_group=self._group)
        except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
            raise self._failed(step, error) from error
        self._pending = step, cast("Future[Any]", future)

    def wait(self) -> None:
        """Until the checkpoint being written is whole. Raises CheckpointError where it cannot be."""
        if self._pending is None:
            return
        step = self._pending[0]
        try:
            self._finish_pending()
            dist.barrier(group=self._group)
        except (OSError, dcp.api.CheckpointException, RuntimeError) as error:
            raise self._failed(step, error) from error

    def finish_if_done(self) -> None:
        """Give the one being written its name if it is whole by now; does not wait. Where there are several ranks, one
        that failed is left to the next `wait`, in which all of them learn of it."""
        if self._pending is None or not self._pending[1].done():
            return
        if self.process.world_size == 1:
            self.wait()
        elif self._pending[1].exception() is None:
            self._name(self._pending[0])

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Waits at the end. Where an exception ends the run, the one being written still gets its name, if it can: the
        exception is what counts, and other ranks may not come to this point."""
        try:
            yield
        except BaseException:
            try:
                self._finish_pending()
            except Exception as error:
                _LOG.warning("the checkpoint that was being written is lost: %s", _reason(error))
            raise
        self.wait()

    def _finish_pending(self) -> None:
        """Wait for this rank's part of the one being written, and on the first rank name it."""
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            future.result()
            self._name(step)

    def _name(self, step: int) -> None:
        """The first rank's part is done only when all ranks have reported theirs: it writes DCP's index, the last file.
        So it can rename without asking anybody."""
        if self.process.is_main and self._temporary(step).is_dir():
            target = self.folder / self._temporary(step).stem
            shutil.rmtree(target, ignore_errors=True)
            self._temporary(step).rename(target)
            self._thin_out()

    def load(self, path: Path, state: State) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Read into `state` what `path` holds. Returns its metadata (`read_metadata`) and this rank's state: None where
        it was written by another number of ranks.

        Raises CheckpointError where it does not fit the network, or is damaged.
        """
        tensors = state.tensors()
        try:
            metadata = read_metadata(path)
            _compare(path, read_index(path).state_dict_metadata, tensors)
            dcp.load(tensors, storage_reader=IndexReader(path), process_group=self._group)
            rank_file = path / f"rank-{self.process.rank}.pt"
            same_world = metadata["world_size"] == self.process.world_size
            rank_state = torch.load(rank_file, weights_only=True) if same_world else None
        except CheckpointError:
            raise
        except (Exception, dcp.api.CheckpointException) as error:
            raise _damaged(path, error) from error
        state.network.load_state_dict(tensors["weights"])
        return metadata, rank_state

    def _temporary(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.tmp"

    def _thin_out(self) -> None:
        """Remove what is neither among the last nor to be kept, and what killed runs left."""
        for path in complete_checkpoints(self.folder)[: -self.keep_last]:
            if not (self.keep_every and int(path.name.removeprefix("step-")) % self.keep_every == 0):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        free_mib = shutil.disk_usage(self.folder).free // 2**20 if self.folder.is_dir() else 0
        if self.process.is_main:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        return CheckpointError(
            f"the checkpoint after step {step} could not be written ({free_mib:,} MiB were free there): "
            f"{_reason(error)}; {describe_latest(self.folder)}"
        )


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp" and (p / INDEX).is_file())


def read_metadata(path: Path) -> dict[str, Any]:
    """What is known of a whole checkpoint: `step`, `world_size`, and what it was saved with. Raises
    CheckpointError where it is damaged."""
    try:
        metadata = json.loads((path / _METADATA).read_text())
        return dict(metadata) | {"step": int(metadata["step"]), "world_size": int(metadata["world_size"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    reason = " ".join(str(_reason(error)).split()) or type(error).__name__
    return CheckpointError(f"the checkpoint {path} is damaged: {reason}. Remove it to continue from the one before")


def describe_latest(folder: Path) -> str:
    """Where a run can go on from, as part of a sentence."""
    checkpoints = complete_checkpoints(folder)
    return f"the last whole one is {checkpoints[-1]}" if checkpoints else "there is no whole one yet"


def _reason(error: BaseException) -> BaseException:
    """What lies beneath: DCP wraps the errors of ranks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, dcp.api.CheckpointException) else error


def _compare(path: Path, stored: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise CheckpointError where names or shapes differ."""
    expected = {name: tuple(tensor.shape) for name, tensor in _flat(tensors).items()}
    shapes = {name: tuple(meta.size) for name, meta in stored.items() if hasattr(meta, "size")}
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    reshaped = [name for name in expected if name in shapes and expected[name] != shapes[name]]
    if missing or unexpected or reshaped:
        first = (missing or unexpected or reshaped)[0]
        raise CheckpointError(
            f"{path} is of another network or another choice of what trains: {len(missing)} tensors are missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} of another shape, first {first}. Continue it with the "
            "settings it was begun with, or begin a new run in another folder"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
