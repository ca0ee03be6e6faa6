"""Checkpoints with torch.distributed.checkpoint (DCP): each rank writes its part asynchronously, and the folder is
renamed to its final name once every part is complete.

    CHECKPOINTS/step-00000500/       weights, optimizer and average; loads with any number of ranks
    CHECKPOINTS/step-00000500/rank-0.pt      per rank: data position and pending metrics
    CHECKPOINTS/step-00001000.tmp/   incomplete: being written, or left by a killed run

DCP's index is a pickle; `training.checkpoint_index` reads it without executing code. A finished run exports
safetensors.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

from clipmill.errors import RunStopped, Superseded, UserError
from training.checkpoint_index import INDEX, IndexReader, read_index
from training.distributed import Process, barrier, leave_group, new_group
from training.ema import Ema

CHECKPOINTS = "checkpoints"
"""Checkpoint subfolder of a run."""
METADATA = "checkpoint.json"
_LOG = logging.getLogger("clipmill.training")


class CheckpointError(RunStopped):
    """Writing a checkpoint failed, or it does not match the run; the message names the last complete one."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Contents of a checkpoint, except for the data position."""

    network: nn.Module
    trained: Mapping[str, nn.Parameter]
    """The optimizer's own parameters: FSDP2 replaces those of the module while they are gathered."""
    optimizer: Optimizer
    ema: Ema | None

    def tensors(self) -> dict[str, Any]:
        """All tensors by name; optimizer state is created, as zeros, before the first step."""
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
    """The checkpoints of one run. Every rank has an instance and calls it in the same steps."""

    folder: Path
    process: Process
    keep_last: int = 2
    keep_every: int | None = None
    _group: Any = field(init=False)
    _pending: tuple[int, Future[Any]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._group = new_group()
        if self._group is None:
            warnings.filterwarnings("ignore", "torch.distributed is .*uninitialized", UserWarning)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(complete_checkpoints(self.folder)), None)

    def fetched(self, path: Path) -> Path:
        """The path at which this rank reads the checkpoint that the first rank's `latest` returned."""
        return path

    def latest_address(self) -> str:
        """Address of the newest complete checkpoint, for messages."""
        return str(self.latest())

    def describe_latest(self) -> str:
        """Describe the newest complete checkpoint, as part of a sentence."""
        return describe_latest(self.folder)

    def save(self, step: int, state: State, rank_state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Start writing the state after `step` steps, and this rank's `own` state; returns immediately.

        Waits for the previous checkpoint first. Raises CheckpointError if that one failed.
        """
        self.wait()
        temporary = self._temporary(step)
        try:
            self._prepare(step, metadata)
            barrier(self._group)
            torch.save(dict(rank_state), temporary / rank_file(self.process.rank))
            future = dcp.async_save(state.tensors(), checkpoint_id=temporary, process_group=self._group)
        except (OSError, RuntimeError, UserError) as error:  # torch.save raises RuntimeError on a full disk
            raise self._failed(step, error) from error
        self._pending = step, self._published(step, cast("Future[Any]", future))

    def _prepare(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Create the folder that all ranks write into."""
        if self.process.is_main:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
            self._temporary(step).mkdir(parents=True)
            self._write_metadata(step, metadata)

    def _write_metadata(self, step: int, metadata: Mapping[str, Any]) -> None:
        values = {"step": step, "world_size": self.process.world_size, **metadata}
        (self._temporary(step) / METADATA).write_text(json.dumps(values))

    def _published(self, step: int, written: Future[Any]) -> Future[Any]:
        """A future that completes when this rank's part is in place."""
        return written

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete. Raises CheckpointError if it failed."""
        if self._pending is None:
            return
        step = self._pending[0]
        try:
            self._finish_pending()
            barrier(self._group)
        except (OSError, dcp.api.CheckpointException, RuntimeError, UserError) as error:
            raise self._failed(step, error) from error

    def finish_if_done(self) -> None:
        """Rename the pending checkpoint if it is complete, without waiting. With several ranks, a failure is left to
        the next `wait`, where all ranks learn of it.
        """
        if self._pending is None or not self._pending[1].done():
            return
        if self.process.world_size == 1:
            self.wait()
        elif self._pending[1].exception() is None:
            self._name(self._pending[0])

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Wait for the pending checkpoint on exit. After an exception it is still renamed if possible, but its errors
        are only logged, and no collectives are used, since other ranks may not get here. After Superseded it is left
        to the other run, which removes it. No checkpoint is saved or loaded afterwards.
        """
        try:
            yield
        except Superseded:
            if self._pending is not None:
                wait([self._pending[1]])
            raise
        except BaseException:
            try:
                self._finish_pending()
            except Exception as error:
                _LOG.warning("failed to write the last checkpoint: %s", _reason(error))
            raise
        self.wait()
        leave_group(self._group)

    def _finish_pending(self) -> None:
        """Wait for this rank's part of the pending checkpoint; rename it on the first rank."""
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            future.result()
            self._name(step)

    def _name(self, step: int) -> None:
        """Rename the folder on the first rank, whose part completes last: it writes DCP's index after all ranks have
        reported theirs. No further communication is needed.
        """
        if self.process.is_main and self._temporary(step).is_dir():
            target = self.folder / self._temporary(step).stem
            shutil.rmtree(target, ignore_errors=True)
            self._temporary(step).rename(target)
            self._thin_out()

    def load(self, path: Path, state: State) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Load `path` into `state`. Returns its metadata (`read_metadata`) and this rank's state, or None for the
        latter if the number of ranks differs.

        Raises CheckpointError for a mismatched or damaged checkpoint.
        """
        tensors = state.tensors()
        try:
            metadata = read_metadata(path)
            _compare(path, read_index(path).state_dict_metadata, tensors)
            dcp.load(tensors, storage_reader=self._index_reader(path), process_group=self._group)
            same_world = metadata["world_size"] == self.process.world_size
            own = path / rank_file(self.process.rank)
            rank_state = torch.load(own, weights_only=True) if same_world else None
        except UserError:
            raise
        except (Exception, dcp.api.CheckpointException) as error:
            reason = _reason(error)
            raise reason if isinstance(reason, UserError) else _damaged(path, error) from error
        state.network.load_state_dict(tensors["weights"])
        return metadata, rank_state

    def _temporary(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.tmp"

    def _thin_out(self) -> None:
        """Delete checkpoints that `keep_last` and `keep_every` do not retain, and leftovers of killed runs."""
        for name in self._too_old([path.name for path in complete_checkpoints(self.folder)]):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _too_old(self, names: Sequence[str]) -> list[str]:
        """The complete checkpoints, given oldest first, that are not to be retained."""
        every = self.keep_every
        return [name for name in names[: -self.keep_last] if not every or int(name.removeprefix("step-")) % every]

    def _index_reader(self, path: Path) -> IndexReader:
        return IndexReader(path)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        free_mib = shutil.disk_usage(self.folder).free // 2**20 if self.folder.is_dir() else 0
        if self.process.is_main:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        return CheckpointError(
            f"failed to write the checkpoint after step {step} ({free_mib:,} MiB free): "
            f"{_sentence(error)}; {self.describe_latest()}"
        )


def rank_file(rank: int) -> str:
    """File with the state of one rank: its data position and pending metrics."""
    return f"rank-{rank}.pt"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp" and (p / INDEX).is_file())


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a complete checkpoint: `step`, `world_size`, and what it was saved with. Raises
    CheckpointError if it is damaged.
    """
    try:
        metadata = json.loads((path / METADATA).read_text())
        return dict(metadata) | {"step": int(metadata["step"]), "world_size": int(metadata["world_size"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged: {_sentence(error)}. Remove it to resume from the previous one"
    )


def describe_latest(folder: Path) -> str:
    """Describe the newest complete checkpoint, as part of a sentence."""
    checkpoints = complete_checkpoints(folder)
    return f"last complete checkpoint: {checkpoints[-1]}" if checkpoints else "no complete checkpoint yet"


def _reason(error: BaseException) -> BaseException:
    """Unwrap the cause: DCP wraps the errors of ranks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, dcp.api.CheckpointException) else error


def _sentence(error: BaseException) -> str:
    reason = _reason(error)
    return " ".join(str(reason).split()) or type(reason).__name__


def _compare(path: Path, stored: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise CheckpointError if names or shapes differ."""
    expected = {name: tuple(tensor.shape) for name, tensor in _flat(tensors).items()}
    shapes = {name: tuple(meta.size) for name, meta in stored.items() if hasattr(meta, "size")}
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    reshaped = [name for name in expected if name in shapes and expected[name] != shapes[name]]
    if missing or unexpected or reshaped:
        first = (missing or unexpected or reshaped)[0]
        raise CheckpointError(
            f"{path} does not match the network or model.trainable: {len(missing)} tensors are missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} with the wrong shape, first: {first}. Resume with the "
            "original settings, or start a new run in another folder"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
