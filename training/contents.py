"""Record the shards a run was trained on: resuming on different ones would change the sample order.

RUN/contents.jsonl    shards of the run, one per line; checkpoints store their digest
"""

import json
from hashlib import sha256
from pathlib import Path

from clipmill.atomic import write_text
from clipmill.errors import UserError
from clipmill.resume import shortened

CONTENTS = "contents.jsonl"

Contents = list[tuple[str, int, int]]
"""Name, bytes and samples of each shard, in reading order."""


def digest(contents: Contents) -> str:
    """16 hex digits that identify a list of shards."""
    return sha256(json.dumps(contents).encode()).hexdigest()[:16]


def write_contents(out: Path, contents: Contents) -> None:
    """Write RUN/contents.jsonl, so that later changes can be named."""
    write_text(out / CONTENTS, "\n".join(json.dumps(shard) for shard in contents) + "\n")


def check_contents(out: Path, before: str | None, contents: Contents) -> None:
    """Raise UserError, naming the changed shards, if `contents` does not match the checkpoint's digest `before`.
    Checkpoints without a digest are not checked.
    """
    if before is None or before == digest(contents):
        return
    named = shortened(_changes(_read_contents(out, before), contents)) or "names, sizes or their order differ"
    raise UserError(
        f"{out} was trained on different shards ({named}): resume with the original ones. To train on others, finish "
        "this run (run.steps) and start a new one from it (--init)"
    )


def _read_contents(out: Path, expected: str) -> Contents:
    """Read RUN/contents.jsonl; empty if it is damaged or does not match the checkpoint."""
    try:
        lines = (out / CONTENTS).read_text().splitlines()
        contents = [(str(name), int(size), int(samples)) for name, size, samples in map(json.loads, lines)]
    except (OSError, ValueError, TypeError, RecursionError):
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
