"""The location of a run: a folder shared by all ranks, or a URL in a store with a working copy per rank."""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.errors import Superseded, UserError
from clipmill.range_cache import default_folder
from clipmill.ranges import StoredObject, object_of
from clipmill.retries import retried
from clipmill.shard_folder import INDEX
from clipmill.transfers import download, download_once, upload
from training import checkpoint, checkpoint_store
from training.checkpoint import CHECKPOINTS, Checkpoints, complete_checkpoints
from training.checkpoint_store import CheckpointStore, StoredCheckpoints
from training.distributed import Process, barrier
from training.init_model import MODEL
from training.metrics import METRICS
from training.remote_shards import STARTUP_RETRY_S

SETTINGS, LORA = "stage.json", "lora.safetensors"
Location = TypeVar("Location", bound=Path | str)
"""A local path, or an fsspec URL as text."""
_NEEDED = (SETTINGS, INDEX)
"""Read by every rank when a run is resumed."""
_APART = (CHECKPOINTS, MODEL, LORA)
"""Published separately."""
_NEEDED_BY_FIRST = (METRICS, "shards.index", "images.index")


def below(folder: Location, name: str) -> Location:
    """The path or URL of `name` in a folder."""
    return cast("Location", folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}")


def latest_step(out: Path | str) -> int | None:
    """Step of the newest complete checkpoint of a run; None if there is none."""
    if is_stored(out):
        names = CheckpointStore(str(out)).complete()
    else:
        names = [path.name for path in complete_checkpoints(Path(out) / CHECKPOINTS)]
    return int(names[-1].removeprefix("step-")) if names else None


def describe_latest(out: Path | str) -> str:
    """Describe the newest complete checkpoint of a run, as part of a sentence."""
    if is_stored(out):
        return checkpoint_store.describe_latest(CheckpointStore(str(out)))
    return checkpoint.describe_latest(Path(out) / CHECKPOINTS)


class RunFolder:
    """A run on a disk: nothing is copied."""

    def __init__(self, path: Path, process: Process) -> None:
        self.path, self.process = path, process

    @property
    def address(self) -> str:
        """The run, for users: without credentials."""
        return str(self.path)

    def checkpoints(self, **kept: int | None) -> Checkpoints:
        """The checkpoints of the run; `kept` as in `Checkpoints`."""
        return Checkpoints(self.path / CHECKPOINTS, self.process, **kept)  # type: ignore[arg-type]

    def publish(self) -> None:
        """Upload what the first rank has written, except checkpoints and the model."""

    def publish_model(self, path: Path, last: str) -> Path | str:
        """Upload the model, a file or folder; its file `last` appears last. Returns its path or address."""
        return path


class StoredRun(RunFolder):
    """A run in a store, and the working copy of this rank."""

    def __init__(self, url: str, path: Path, restored: Path, process: Process) -> None:
        super().__init__(path, process)
        self._url, self._restored = url.rstrip("/"), restored
        self._published: dict[Path, tuple[int, int]] = {}
        self.begun = False
        """Whether it has published anything; until then, its files may be those of another run."""

    @property
    def address(self) -> str:
        return without_credentials(self._url)

    def pull(self) -> None:
        """Download what a resumed run reads, except its checkpoint."""
        for name in (*_NEEDED, *(_NEEDED_BY_FIRST if self.process.is_main else ())):
            try:
                download(f"{self._url}/{name}", self.path / name)
            except FileNotFoundError:
                continue

    def checkpoints(self, **kept: int | None) -> Checkpoints:
        store, folder = CheckpointStore(self._url), self.path / CHECKPOINTS
        return StoredCheckpoints(store, self._restored, self.publish, folder, self.process, **kept)

    def publish(self) -> None:
        if not self.process.is_main:
            return
        self.begun = True
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            if name.parts[0] in _APART or any(part.endswith(".tmp") for part in name.parts) or not path.is_file():
                continue
            stat = path.stat()
            if self._published.get(path) != (stat.st_size, stat.st_mtime_ns):
                upload(path, f"{self._url}/{name.as_posix()}")
                self._published[path] = stat.st_size, stat.st_mtime_ns

    def publish_model(self, path: Path, last: str) -> str:
        url = f"{self._url}/{path.name}"
        if self.process.is_main and path.is_file():
            upload(path, url)
        elif self.process.is_main:
            storage.remove(*storage.filesystem(f"{url}/{last}"))  # of an earlier run with fewer steps
            files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
            for name in sorted(files, key=lambda name: (name == last, name)):
                upload(path / name, f"{url}/{name}")
        return without_credentials(url)


@contextmanager
def opened_run(out: Path | str, process: Process) -> Iterator[RunFolder]:
    """The run in `out`, a path or an fsspec URL; a working copy is removed when the block ends.

    Raises UserError without permission for the store, RunStopped if it does not answer.
    """
    if not is_stored(out):
        yield RunFolder(Path(out), process)
        return
    name = blake2b(without_credentials(str(out)).encode(), digest_size=8).hexdigest()
    base = default_folder().with_name("runs") / name
    with _working_copy(base, process.rank) as path:
        run = StoredRun(str(out), path, base / "restored", process)
        run.pull()
        try:
            yield run
        except Exception as error:
            if run.begun and not isinstance(error, Superseded):
                with suppress(Exception):  # the error that ended the run takes precedence
                    run.publish()
            raise


@contextmanager
def _working_copy(base: Path, rank: int) -> Iterator[Path]:
    """An empty folder of this process, removed when the block ends. Removes those of dead processes of the same rank,
    which their locks tell from living ones."""
    base.mkdir(parents=True, exist_ok=True)
    for lock in base.glob(f"rank-{rank}-*.lock"):
        with lock.open("ab") as other, suppress(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
    path = base / f"rank-{rank}-{uuid.uuid4().hex[:12]}"
    lock = path.with_suffix(".lock")
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)


def is_stored(out: Path | str) -> bool:
    """Whether a run lives in a store. Raises UserError for an unknown or read-only protocol."""
    if isinstance(out, Path) or "://" not in out:
        return False
    if out.startswith(("http://", "https://")):
        raise UserError(f"cannot write to the web server {without_credentials(out)}: use an object store or a disk")
    return not storage.is_local(storage.filesystem(out)[0])


@contextmanager
def local_model(init: Path | str | None) -> Iterator[Path | None]:
    """The initial model on the local disk; from a store, it is downloaded once per machine, and removed when the block
    ends on all ranks. `init` may be a finished run, whose model is used.

    Raises FileNotFoundError, UserError and RunStopped as `clipmill.retries.retried`.
    """
    if init is None or not is_stored(init):
        yield None if init is None else Path(init)
        return
    url = str(init).rstrip("/")
    objects = _objects_below(f"{url}/{MODEL}") or _objects_below(url)
    if not objects:
        raise FileNotFoundError(f"{without_credentials(url)}: no model found. Check the address")
    versions = repr([(name, stored.address, stored.size_bytes, stored.version) for name, stored in objects.items()])
    folder = default_folder().with_name("models") / blake2b(versions.encode(), digest_size=8).hexdigest()
    for name, stored in objects.items():
        download_once(stored.url, folder / name)
    yield folder
    barrier()
    shutil.rmtree(folder, ignore_errors=True)


def _objects_below(url: str) -> dict[str, StoredObject]:
    """The files below a folder, by relative path."""
    fs, folder = storage.filesystem(url)

    def find() -> dict[str, Any]:
        fs.invalidate_cache()
        return dict(fs.find(folder, detail=True))

    found = retried(find, without_credentials(url), STARTUP_RETRY_S)
    return {
        path.removeprefix(folder).lstrip("/"): object_of(str(fs.unstrip_protocol(path)), info)
        for path, info in sorted(found.items())
        if path != folder
    }
