"""Checkpoints of a run in an object store: written to the local disk, then uploaded in the background.

URL/checkpoints/step-00000500/__0_0.distcp, rank-0.pt, checkpoint.json    uploaded by each rank
URL/checkpoints/step-00000500/.metadata                                   last: without it there is no checkpoint
"""

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from clipmill.retries import RETRY_S, retried
from clipmill.transfers import download_once, upload
from training.checkpoint import CHECKPOINTS, METADATA, CheckpointError, Checkpoints, rank_file, read_metadata
from training.checkpoint_index import INDEX, IndexReader
from training.distributed import barrier

_ID = "id"
"""Key in checkpoint.json that distinguishes attempts at the same step."""
_POLL_S = 1.0
_PEERS_S = 3600.0
"""Longest wait of the first rank for the uploads of the others."""


class CheckpointStore:
    """The checkpoints below the URL of a run."""

    def __init__(self, run_url: str) -> None:
        self.url = f"{run_url.rstrip('/')}/{CHECKPOINTS}"
        self.address = without_credentials(self.url)

    def complete(self) -> list[str]:
        """Names of the complete checkpoints, oldest first. Raises UserError and RunStopped as `clipmill.retries`."""
        names = {path.rpartition("/")[0].rpartition("/")[2] for path in self._files() if path.endswith(f"/{INDEX}")}
        return sorted(name for name in names if name.startswith("step-"))

    def files(self, name: str) -> list[str]:
        """Names of the files of a checkpoint, complete or not."""
        parts = (path.rsplit("/", 2) for path in self._files())
        return [file for _, checkpoint, file in parts if checkpoint == name]

    def remove(self, name: str) -> None:
        """Remove a checkpoint, index first, so that a partly removed one is incomplete."""
        for file in sorted(self.files(name), key=lambda file: file != INDEX):
            storage.remove(*storage.filesystem(f"{self.url}/{name}/{file}"))

    def put(self, path: Path, name: str) -> None:
        """Upload a file of a checkpoint."""
        upload(path, f"{self.url}/{name}/{path.name}")

    def get(self, name: str, file: str, folder: Path) -> None:
        """Download a file of a checkpoint into a folder that the ranks of a machine share, once."""
        download_once(f"{self.url}/{name}/{file}", folder / file)

    def _files(self) -> list[str]:
        fs, path = storage.filesystem(self.url)

        def find() -> list[str]:
            fs.invalidate_cache()
            return list(fs.find(path))

        return retried(find, self.address, RETRY_S)


class StoredCheckpoints(Checkpoints):
    """The checkpoints of a run in a store; each rank writes into its own local folder."""

    def __init__(
        self, store: CheckpointStore, restored: Path, publish: Callable[[], None], *args: Any, **kwargs: Any
    ) -> None:
        """`restored`: folder for downloads, shared by the ranks of a machine; `publish` uploads logs and settings."""
        super().__init__(*args, **kwargs)
        self._store, self._restored, self._publish_others = store, restored, publish

    def latest(self) -> Path | None:
        """The newest complete checkpoint, where `fetched` puts it."""
        complete = self._store.complete() if self.process.is_main else []
        return self.folder / complete[-1] if complete else None

    def fetched(self, path: Path) -> Path:
        """Download the metadata of the checkpoint and this rank's state."""
        local = self.folder / path.name
        shutil.rmtree(local, ignore_errors=True)
        with self._addressed(local):
            for file in (METADATA, INDEX):
                self._store.get(path.name, file, local)
            if read_metadata(local)["world_size"] == self.process.world_size:
                self._store.get(path.name, rank_file(self.process.rank), local)
        return local

    def load(self, path: Path, state: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """As in `Checkpoints`; downloads the files that this rank needs, and removes them afterwards."""
        with self._addressed(path):
            loaded = super().load(path, state)
        barrier(self._group)
        shutil.rmtree(self._restored, ignore_errors=True)
        shutil.rmtree(path, ignore_errors=True)
        return loaded

    @contextmanager
    def _addressed(self, path: Path) -> Iterator[None]:
        """Let errors name the checkpoint in the store instead of its local copy."""
        address = f"{self._store.address}/{path.name}"
        try:
            yield
        except FileNotFoundError as error:
            raise CheckpointError(
                f"checkpoint {address} is incomplete: {error}. Remove it to resume from the previous one"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(path), address)) from error

    def latest_address(self) -> str:
        """As in `Checkpoints`."""
        return f"{self._store.address}/{self._store.complete()[-1]}"

    def describe_latest(self) -> str:
        """As in `training.checkpoint.describe_latest`."""
        return describe_latest(self._store)

    def _index_reader(self, path: Path) -> IndexReader:
        folder = self._restored / f"{path.name}-{read_metadata(path).get(_ID, '')}"
        return IndexReader(path, data=folder, fetch=lambda file: self._store.get(path.name, file, folder))

    def _prepare(self, step: int, metadata: Mapping[str, Any]) -> None:
        shutil.rmtree(self._temporary(step), ignore_errors=True)
        self._temporary(step).mkdir(parents=True)
        if self.process.is_main:
            self._store.remove(self._temporary(step).stem)  # of an earlier attempt that was killed
            self._write_metadata(step, {**metadata, _ID: uuid.uuid4().hex})

    def _published(self, step: int, written: Future[Any]) -> Future[Any]:
        """Upload in the background what this rank has written."""
        published: Future[Any] = Future()

        def publish() -> None:
            try:
                written.result()
                self._publish(step)
                published.set_result(None)
            except BaseException as error:
                published.set_exception(error)

        threading.Thread(target=publish, daemon=True, name="clipmill-checkpoint").start()
        return published

    def _publish(self, step: int) -> None:
        folder = self._temporary(step)
        own = rank_file(self.process.rank)
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == own, path.name)):
            if path.name != INDEX:
                self._store.put(path, folder.stem)
        if self.process.is_main:
            self._publish_others()
            self._wait_for_ranks(folder.stem)
            self._store.put(folder / INDEX, folder.stem)

    def _wait_for_ranks(self, name: str) -> None:
        """Wait until every rank has uploaded its state, which it does last."""
        ranks = {rank_file(rank) for rank in range(self.process.world_size)}
        deadline_s = time.monotonic() + _PEERS_S
        while missing := ranks - set(self._store.files(name)):
            if time.monotonic() > deadline_s:
                raise UserError(
                    f"{sorted(missing)[0]} of {self._store.address}/{name} was not uploaded in {_PEERS_S:g} s"
                )
            time.sleep(_POLL_S)

    def _name(self, step: int) -> None:
        """Remove the local copy and old checkpoints. The uploaded index completes the checkpoint, without a rename."""
        if self._temporary(step).is_dir():
            shutil.rmtree(self._temporary(step), ignore_errors=True)
            if self.process.is_main:
                for name in self._too_old(self._store.complete()):
                    self._store.remove(name)


def describe_latest(store: CheckpointStore) -> str:
    """Describe the newest complete checkpoint in a store, as part of a sentence."""
    try:
        complete = store.complete()
    except (UserError, OSError):
        return "its checkpoints cannot be listed"
    return f"last complete checkpoint: {store.address}/{complete[-1]}" if complete else "no complete checkpoint yet"
