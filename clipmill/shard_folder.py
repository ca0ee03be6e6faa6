"""Folders of shards (of clips or of latents) and the list of shards of a training run: one format for all.

plan.json     what the folder was started with
NAME.json     record of NAME.tar, written after it
index.json    all records; written last, so it marks a complete folder
latents.json  folders with latents of these shards

A record may contain the byte range of every file in its tar, to read samples without reading the tar's headers.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from clipmill import storage
from clipmill.errors import UserError
from clipmill.formats import LATENTS, SHARDS, Format

PLAN, INDEX = "plan.json", "index.json"
_LATENTS, _PUBLISHED = "latents.json", "published.json"
_STORES = tuple(f"{name}://" for name in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "r2"))

Count = Annotated[int, Field(ge=0)]
Range = tuple[Count, Count]
"""Offset and size in bytes."""


@dataclass(frozen=True, kw_only=True)
class FailedClip:
    """A sample that is missing from a shard, and why."""

    clip_id: str
    """In latents and shards of other tools: the sample's key."""
    error_kind: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Members:
    """Byte ranges of the files in a tar."""

    keys: tuple[str, ...]
    """Key of each sample."""
    ranges: Mapping[str, tuple[Range | None, ...]]
    """Extension -> range of each sample's file; None for samples without one."""

    def __post_init__(self) -> None:
        if any(len(ranges) != len(self.keys) for ranges in self.ranges.values()):
            raise ValueError("expected one range per key")


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard: its tar, its samples, and those missing from it."""

    name: str
    """File name of the tar."""
    samples: Count
    bytes: Count
    """Size of the tar."""
    clips: Count | None = None
    """Clips that its samples come from: fewer than samples if a clip has several images."""
    sha256: str | None = None
    """Of the tar, in hex."""
    duration_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Footage in its clips (for images: of the clips that they represent)."""
    fingerprint: str | None = None
    """Identifies what it was written from: the rows of its clips, or the version of the shard of its latents."""
    problem: str | None = None
    """Reason if the shard that it was written from could not be read to its end."""
    failed: tuple[FailedClip, ...] = ()
    noted: Mapping[str, Count] | None = None
    """Of shards of other tools: what was noted about their samples -> for how many."""
    members: Members | None = None


_RECORD = TypeAdapter(ShardRecord)
_IN_INDEX = ("name", "samples", "bytes", "sha256", "duration_s", "problem", "members")


def index_of(
    description: Mapping[str, Any],
    records: Sequence[ShardRecord],
    *,
    totals: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Content of index.json: the folder's description, its shards, totals, and the failed samples with their reasons.

    `totals` and `more` are added to the totals and to the content.
    """
    failed = [asdict(clip) | {"shard": record.name} for record in records for clip in record.failed]
    counts = {
        "shards": len(records),
        "samples": sum(record.samples for record in records),
        "bytes": sum(record.bytes for record in records),
        "failed": len(failed),
    }
    shards = [{key: value for key, value in _values(record).items() if key in _IN_INDEX} for record in records]
    return {**description, "totals": {**counts, **(totals or {})}, **more, "failed": failed, "shards": shards}


def write_index(folder_url: str, index: Mapping[str, Any]) -> None:
    """Write index.json; `index` as returned by `index_of`. Raises UserError if that fails."""
    _write(folder_url, INDEX, index)


def read_index(
    folder_url: str, expected: Format, parse: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> dict[str, Any] | None:
    """Read index.json; None if missing. Raises UserError if it is damaged, or of another format than expected; `parse`
    raises ValueError, TypeError or KeyError for damaged content."""
    return _read(folder_url, INDEX, expected, parse)


def remove_index(folder_url: str) -> None:
    """Remove index.json before shards are written, since it marks a complete folder."""
    fs, folder = storage.filesystem(folder_url)
    storage.remove(fs, f"{folder}/{INDEX}")


def records_in(index: Mapping[str, Any]) -> list[ShardRecord]:
    """The shards listed by an index.json. Raises ValueError, TypeError or KeyError for invalid ones."""
    return [parse_record(shard) for shard in index["shards"]]


def write_plan(folder_url: str, plan: Mapping[str, Any]) -> None:
    """Write plan.json. Raises UserError if that fails."""
    _write(folder_url, PLAN, plan)


def read_plan(folder_url: str, expected: Format) -> dict[str, Any] | None:
    """Read plan.json; None if missing. Raises UserError if it is damaged, or of another format than expected."""
    return _read(folder_url, PLAN, expected, dict)


def check_shard_format(folder_url: str) -> bool:
    """Whether clipmill wrote the shards or latents in this folder, by its plan.json. Raises UserError if it did in a
    version that it no longer reads, or does not read yet."""
    fs, folder = storage.filesystem(folder_url)
    try:
        plan = storage.read_json_if_exists(fs, f"{folder}/{PLAN}", dict) or {}
    except UserError:  # damaged, or not ours: the tars alone are read
        return False
    for known in (SHARDS, LATENTS):
        if plan.get("format") == known.describe()["format"] and isinstance(plan.get("format_version"), int):
            known.check(plan, folder_url)
            return True
    return False


def write_record(folder_url: str, record: ShardRecord) -> None:
    """Write the record of a shard next to it. Raises UserError if that fails."""
    _write(folder_url, _record_name(record.name), _values(record))


def read_record(folder_url: str, shard: str) -> ShardRecord | None:
    """Read the record of the shard with this file name; None if missing. Raises ValueError if it is damaged, UserError
    if it cannot be read."""
    fs, folder = storage.filesystem(folder_url)
    try:
        content = storage.read_bytes(fs, f"{folder}/{_record_name(shard)}")
    except FileNotFoundError:
        return None
    return parse_record(content)


def latent_folders(folder_url: str) -> list[str]:
    """Folders with latents of these shards, as `add_latent_folder` noted them. Raises UserError if the note is
    damaged."""
    return _noted(folder_url, _LATENTS)


def add_latent_folder(folder_url: str, latents: str) -> None:
    """Note beside shards that `latents` has latents of them: whoever removes a clip must know. Raises UserError if that
    fails, or for latents that are neither in a local folder nor in an object store."""
    _note(folder_url, _LATENTS, latents, what="latents")


def published_folders(dataset_url: str) -> list[str]:
    """Folders with clips of this dataset, as `add_published_folder` noted them. Raises UserError if the note is
    damaged."""
    return _noted(dataset_url, _PUBLISHED)


def add_published_folder(dataset_url: str, published: str) -> None:
    """Note in a dataset that clips of it are in `published`; otherwise as `add_latent_folder`."""
    _note(dataset_url, _PUBLISHED, published, what="published clips")


def parse_record(content: bytes | str | Mapping[str, Any]) -> ShardRecord:
    """Parse a record from its JSON or its values. Raises ValueError that names the first invalid value."""
    try:
        is_json = isinstance(content, bytes | str)
        return _RECORD.validate_json(content) if is_json else _RECORD.validate_python(content)  # type: ignore[arg-type]
    except ValidationError as error:
        mistake = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, mistake['loc'])) or 'record'}: {mistake['msg']}") from error


def record_json(record: ShardRecord) -> bytes:
    """A record on one line, without line break."""
    return _RECORD.dump_json(record, exclude_none=True)


def _values(record: ShardRecord) -> dict[str, Any]:
    """JSON values, without those that are None."""
    values: dict[str, Any] = _RECORD.dump_python(record, mode="json", exclude_none=True)
    return values


def _record_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.json"


def _noted(folder_url: str, name: str) -> list[str]:
    fs, folder = storage.filesystem(folder_url)
    return storage.read_json_if_exists(fs, f"{folder}/{name}", _checked_folders) or []


def _note(folder_url: str, name: str, noted: str, *, what: str) -> None:
    if not _is_local_or_stored(noted):
        raise UserError(f"expected {what} in a local folder or an object store, got {noted}")
    folders = _noted(folder_url, name)
    if noted not in folders:
        _write(folder_url, name, {"folders": [*folders, noted]})


def _checked_folders(values: dict[str, Any]) -> list[str]:
    """The folders that a note names. Files are looked up in them, so a dataset from elsewhere must not be able to
    direct requests to any server."""
    folders = list(values["folders"])
    for folder in folders:
        if not isinstance(folder, str) or not _is_local_or_stored(folder):
            raise ValueError(f"expected absolute paths or addresses in an object store, got {folder!r}")
    return folders


def _is_local_or_stored(folder: str) -> bool:
    return "::" not in folder and (os.path.isabs(folder.removeprefix("file://")) or folder.startswith(_STORES))


def _read(
    folder_url: str, name: str, expected: Format, parse: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any] | None:
    fs, folder = storage.filesystem(folder_url)

    def checked(values: dict[str, Any]) -> dict[str, Any]:
        expected.check(values, folder_url)
        return parse(values)

    return storage.read_json_if_exists(fs, f"{folder}/{name}", checked)


def _write(folder_url: str, name: str, content: Mapping[str, Any]) -> None:
    fs, folder = storage.filesystem(folder_url)
    storage.write_bytes(fs, f"{folder}/{name}", "".join(_layout(content)).encode())


def _layout(content: Mapping[str, Any]) -> Iterable[str]:
    """JSON with one line per entry of a list: one per shard in an index, readable with grep."""
    for i, (key, value) in enumerate(content.items()):
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n ]"
        elif key == "members":
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")
        yield f"{',' if i else '{'}\n {json.dumps(key)}: {text}"
    yield "\n}\n"
