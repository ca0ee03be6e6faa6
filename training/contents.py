"""Record the shards a run was trained on: resuming on different ones would change the sample order.

RUN/index.json    shards of the run, in the format of `clipmill.shard_folder`; checkpoints store their digest
"""

import json
from hashlib import sha256
from pathlib import Path

from clipmill.errors import UserError
from clipmill.formats import RUN
from clipmill.resume import shortened
from clipmill.shard_folder import ShardRecord, index_of, read_index, records_in, write_index

Contents = list[tuple[str, int, int]]
"""Name, bytes and samples of each shard, in reading order."""


def digest(contents: Contents) -> str:
    """16 hex digits that identify a list of shards."""
    return sha256(json.dumps(contents).encode()).hexdigest()[:16]


def write_contents(out: Path, contents: Contents) -> None:
    """Write RUN/index.json, so that later changes can be named."""
    records = [ShardRecord(name=name, samples=samples, bytes=size) for name, size, samples in contents]
    write_index(str(out), index_of(RUN.describe(), records))


def check_contents(out: Path, before: str | None, contents: Contents, *, address: str | None = None) -> None:
    """Raise UserError, naming the changed shards, if `contents` does not match the checkpoint's digest `before`.
    Checkpoints without a digest are not checked. `address` is that of the run for the error, by default `out`.
    """
    if before is None or before == digest(contents):
        return
    named = shortened(_changes(_read_contents(out, before), contents)) or "names, sizes or their order differ"
    raise UserError(
        f"{address or out} was trained on different shards ({named}): resume with the original ones. To train on "
        "others, finish this run (run.steps) and start a new one from it (--init)"
    )


def _read_contents(out: Path, expected: str) -> Contents:
    """Read RUN/index.json; empty if it is damaged or does not match the checkpoint."""
    try:
        index = read_index(str(out), RUN) or {"shards": []}
        contents = [(shard.name, shard.bytes, shard.samples) for shard in records_in(index)]
    except (ValueError, TypeError, KeyError):
        return []
    return contents if digest(contents) == expected else []


def _changes(before: Contents, now: Contents) -> list[str]:
    """Shards removed, added or changed, if the previous ones are known."""
    if not before:
        return []
    old, new = ({name: (size, samples) for name, size, samples in contents} for contents in (before, now))
    gone = [f"{name} was removed" for name in old if name not in new]
    added = [f"{name} was added" for name in new if name not in old]
    changed = [
        f"{name} had {old[name][1]:,} samples in {old[name][0]:,} bytes, now {new[name][1]:,} in {new[name][0]:,}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    return gone + added + changed
