"""Going on with what an earlier process began: what may be different, in one list for runs, latents, shards and
datasets, and what is said where more is.

RUN/contents.jsonl    the shards that a run reads, one a line: its checkpoints hold their digest
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

CONTENTS = "contents.jsonl"
_NAMED = 3
"""Differences that are named; the rest is counted."""

MAY_CHANGE = frozenset({
    # Stages, for runs and for latents.
    "about",
    # How samples are read and computed, not which.
    "data.workers", "data.prefetch", "data.reader", "model.checkpointing", "run.compile", "run.strategy",
    # Limits on what is broken.
    "data.max_broken_share",
    # Where frozen parts lie: their digests tell whether they are the same.
    "model.autoencoder", "model.image_encoder", "model.text_encoder",
    # How far it goes, and what it writes on the way.
    "run.steps", "run.log_every", "run.save_every", "run.keep_last", "run.keep_every",
    "run.sample_every", "run.sample_count", "run.sample_steps",
    # Shards and datasets: what an input may cost decides which are rejected, not what the others give.
    "limits",
    # Datasets: duplicates are looked for anew; how many go through a model at a time.
    "duplicates", "clip.batch_size", "captioners.coca.batch_size",
    # Where an endpoint is, and how patiently it is asked.
    *(f"captioners.{name}.{key}" for name in ("video", "merged") for key in (
        "base_url", "api_key_env", "timeout_s", "retries", "max_in_flight", "give_up_after", "pause_s",
    )),
})  # fmt: skip
"""Settings that may be others when a run is resumed, latents or shards are written into a folder that holds some, or a
dataset grows: they do not decide what is computed. Shards, frozen parts and models may have moved."""

Contents = list[tuple[str, int, int]]
"""Name, bytes and samples of each shard, in the order in which they are read."""


def deciding(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The nested settings without those that may change; `path` leads to them, with a dot at its end."""
    return {
        name: deciding(value, f"{path}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{path}{name}" not in MAY_CHANGE
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = ()) -> list[str]:
    """What differs between two nested configurations, as `group.key A, now B`, but for `MAY_CHANGE` and `ignored`.
    A key that `before` does not have is newer than it, and no difference."""
    return [
        f"{name} {_shown(old)}, now {_shown(new)}"
        for name, old, new in _both(before, now)
        if old != new and name not in MAY_CHANGE and name not in ignored
    ]


def sentence(where: Path, what: str, differing: list[str]) -> str:
    """That `where`, which holds `what` (a run, latents), cannot be gone on with."""
    return (
        f"{where} holds {what} with different settings ({shortened(differing)}): resume with the original ones, or "
        "choose another folder"
    )


def shortened(listed: list[str]) -> str:
    """The first of a list, and how many follow."""
    more = len(listed) - _NAMED
    return "; ".join(listed[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def digest(contents: Contents) -> str:
    """16 hex digits for a set of shards."""
    return sha256(json.dumps(contents).encode()).hexdigest()[:16]


def write_contents(out: Path, contents: Contents) -> None:
    """Keep in RUN/contents.jsonl what a run reads, so that a change can be named."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{CONTENTS}.{os.getpid()}.tmp"
    temporary.write_text("\n".join(json.dumps(shard) for shard in contents) + "\n")
    temporary.replace(out / CONTENTS)


def check_contents(out: Path, before: str | None, contents: Contents) -> None:
    """Raise ValueError, naming the shards, where these are others than the checkpoint's, whose digest is `before`: a
    position in the order of samples would mean another sample. A checkpoint without a digest is not judged."""
    if before is None or before == digest(contents):
        return
    named = shortened(_changes(_read_contents(out, before), contents)) or "names, sizes or their order differ"
    raise ValueError(
        f"{out} was trained on other shards ({named}): resume with the same ones. To train on others, let this run end "
        "(run.steps) and start another from it (--init)"
    )


def _both(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any, Any]]:
    """(dotted name, before, now) of each value that both have; a mapping below a group counts as one value."""
    for name, new in now.items():
        old = before.get(name, new)
        if not path and isinstance(new, Mapping) and isinstance(old, Mapping):
            yield from _both(old, new, f"{name}.")
        else:
            yield f"{path}{name}", old, new


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


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
    old, new = ({name: (size, samples) for name, size, samples in each} for each in (before, now))
    gone = [f"{name} is gone" for name in old if name not in new]
    added = [f"{name} is new" for name in new if name not in old]
    changed = [
        f"{name} had {old[name][1]:,} samples in {old[name][0]:,} bytes, now {new[name][1]:,} in {new[name][0]:,}"
        for name in old
        if name in new and old[name] != new[name]
    ]
    return gone + added + changed
