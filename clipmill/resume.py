"""Resuming a run, a set of latents or shards, or a dataset: which settings may differ, and how a difference is told."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

_NAMED = 3
"""Differences that are named; the rest is counted."""

MAY_CHANGE = frozenset({
    # Stages, for runs and for latents.
    "description",
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
    "scan.limits", "extraction.limits",
    # Datasets: duplicates are looked for anew; how many go through a model at a time.
    "duplicates", "clip_embedder.batch_size", "captioners.coca.batch_size",
    # Where an endpoint is, and how patiently it is asked.
    *(f"captioners.{name}.{key}" for name in ("video", "merged") for key in (
        "base_url", "api_key_env", "timeout_s", "retries", "max_in_flight", "give_up_after", "pause_s",
    )),
})  # fmt: skip
"""Settings that may be others when a run is resumed, latents or shards are written into a folder that holds some, or a
dataset grows: they do not decide what is computed. Shards, frozen parts and models may have moved."""


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
