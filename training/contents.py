"""The shards that a run was trained on: resuming it on others would mean other samples.

RUN/contents.jsonl    the shards that a run reads, one a line: its checkpoints hold their digest
"""

import json
from hashlib import sha256
from pathlib import Path

from clipmill.atomic import write_text
from clipmill.errors import UserError
from clipmill.resume import shortened

CONTENTS = "contents.jsonl"

Contents = list[tuple[str, int, int]]
"""Name, bytes and samples of each shard, in the order in which they are read."""


def digest(contents: Contents) -> str:
    """16 hex digits for a set of shards."""
    return sha256(json.dumps(contents).encode()).hexdigest()[:16]


def write_contents(out: Path, contents: Contents) -> None:
    """Keep in RUN/contents.jsonl what a run reads, so that a change can be named."""
    write_text(out / CONTENTS, "\n".join(json.dumps(shard) for shard in contents) + "\n")


def check_contents(out: Path, before: str | None, contents: Contents) -> None:
    """Raise UserError, naming the shards, where these are others than the checkpoint's, whose digest is `before`: a
    position in the order of samples would mean another sample. A checkpoint without a digest is not judged."""
    if before is None or before == digest(contents):
        return
    named = shortened(_changes(_read_contents(out, before), contents)) or "names, sizes or their order differ"
    raise UserError(
        f"{out} was trained on other shards ({named}): resume with the same ones. To train on others, let this run end "
        "(run.steps) and start another from it (--init)"
    )


def _read_contents(out: Path, expected: str) -> Contents:
    """What RUN/contents.jsonl holds; nothing where it is damaged, or not that of the checkpoint."""
    try:
        lines = (out / CONTENTS).read_text().splitlines()
        contents = [(str(name), int(size), int(samples)) for name, size, samples in map(json.loads, lines)]
    except (OSError, ValueError, TypeError, RecursionError):
        return []
    return contents if digest(contents) == expected else []


def _changes(before: Contents, now: Contents) -> list[str]:
    """What has come, gone, or changed, if anything is known of before."""
    if not before:
        return []
    old, new = ({name: (size, samples) for name, size, samples in contents} for contents in (before, now))
    gone = [f"{name} is gone" for name in old if name not in new]
    added = [f"{name} is new" for name in new if name not in old]
    changed = [
        f"{name} had {old[name][1]:,} samples in {old[name][0]:,} bytes, now {new[name][1]:,} in {new[name][0]:,}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    return gone + added + changed
