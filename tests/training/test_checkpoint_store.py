"""Checkpoints in a store: whole or absent, and as they were when they come back."""

import time
from pathlib import Path

import fsspec
import pytest
import torch

from clipmill.errors import RunStopped
from tests.training.test_checkpoint import state
from training.checkpoint import CheckpointError, State
from training.checkpoint_store import CheckpointStore, StoredCheckpoints
from training.distributed import Process

__all__ = ["state"]
URL = "memory://checkpoint-store/run"


@pytest.fixture
def store() -> CheckpointStore:
    fs = fsspec.filesystem("memory")
    if fs.exists("/checkpoint-store"):
        fs.rm("/checkpoint-store", recursive=True)
    return CheckpointStore(URL)


def opened(store: CheckpointStore, folder: Path, process: Process, keep_last: int = 2) -> StoredCheckpoints:
    return StoredCheckpoints(
        store, folder / "restored", lambda: None, folder / "checkpoints", process, keep_last=keep_last
    )


def test_a_state_comes_back_and_nothing_stays_on_the_disk(
    state: State, store: CheckpointStore, tmp_path: Path, process: Process
) -> None:
    checkpoints = opened(store, tmp_path, process)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    checkpoints.save(3, state, {"data": 7}, {"stage": "x"})
    checkpoints.wait()
    assert store.complete() == ["step-00000003"]
    assert store.files("step-00000003") == [".metadata", "__0_0.distcp", "checkpoint.json", "rank-0.pt"]
    with torch.no_grad():
        for parameter in state.trained.values():
            parameter.add_(1)
    again = opened(store, tmp_path / "other", process)
    latest = again.latest()
    assert latest is not None
    metadata, rank_state = again.load(again.fetched(latest), state)
    assert (metadata["step"], metadata["stage"], rank_state) == (3, "x", {"data": 7})
    assert all(torch.equal(value, before[name]) for name, value in state.network.state_dict().items())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_its_index_there_is_no_checkpoint(
    state: State, store: CheckpointStore, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill in the middle of an upload; the next attempt at the same step begins anew."""
    checkpoints = opened(store, tmp_path, process)
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()

    def fail(path: Path, name: str) -> None:
        if path.name.startswith("rank"):
            raise RunStopped("the store is gone")
        CheckpointStore.put(store, path, name)

    monkeypatch.setattr(store, "put", fail)
    checkpoints.save(2, state, {}, {})
    with pytest.raises(
        CheckpointError, match=r"step 2 .*the store is gone; last complete checkpoint: memory://.*00001$"
    ):
        checkpoints.wait()
    assert "__0_0.distcp" in store.files("step-00000002")
    assert store.complete() == ["step-00000001"]
    monkeypatch.undo()
    fsspec.filesystem("memory").pipe_file(f"{URL}/checkpoints/step-00000002/rank-7.pt", b"of an earlier attempt")
    again = opened(store, tmp_path, process)
    again.save(2, state, {}, {})
    again.wait()
    assert store.complete() == ["step-00000001", "step-00000002"]
    assert "rank-7.pt" not in store.files("step-00000002")


def test_the_first_rank_waits_for_what_the_others_upload(
    state: State, store: CheckpointStore, tmp_path: Path, process: Process
) -> None:
    checkpoints = opened(store, tmp_path, Process(rank=0, world_size=2, device=process.device))
    checkpoints.save(1, state, {}, {})
    deadline = time.monotonic() + 60
    while "rank-0.pt" not in store.files("step-00000001") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert store.complete() == []
    fsspec.filesystem("memory").pipe_file(f"{URL}/checkpoints/step-00000001/rank-1.pt", b"of the other rank")
    checkpoints.wait()
    assert store.complete() == ["step-00000001"]


def test_old_ones_are_removed(state: State, store: CheckpointStore, tmp_path: Path, process: Process) -> None:
    checkpoints = opened(store, tmp_path, process, keep_last=1)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {}, {})
    checkpoints.wait()
    assert store.complete() == ["step-00000003"]
    assert store.files("step-00000001") == []


def test_damage_is_named_by_the_address_in_the_store(
    state: State, store: CheckpointStore, tmp_path: Path, process: Process
) -> None:
    checkpoints = opened(store, tmp_path, process)
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
    latest = checkpoints.latest()
    assert latest is not None
    fs = fsspec.filesystem("memory")
    for file in ("__0_0.distcp", "checkpoint.json", ".metadata"):
        content = fs.cat_file(f"{URL}/checkpoints/step-00000001/{file}")
        fs.pipe_file(f"{URL}/checkpoints/step-00000001/{file}", b"{")
        with pytest.raises(CheckpointError, match=f"checkpoint {URL}/checkpoints/step-00000001 is damaged"):
            checkpoints.load(checkpoints.fetched(latest), state)
        fs.pipe_file(f"{URL}/checkpoints/step-00000001/{file}", content)
    fs.rm_file(f"{URL}/checkpoints/step-00000001/rank-0.pt")
    with pytest.raises(CheckpointError, match=r"step-00000001 is incomplete: .*rank-0\.pt: no such file"):
        checkpoints.load(checkpoints.fetched(latest), state)
