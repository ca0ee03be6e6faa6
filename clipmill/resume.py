"""Resuming a run, a set of latents or shards, or a dataset: which settings may differ, and how others are refused."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from clipmill.errors import UserError

_NAMED_SETTINGS, _SHOWN = 5, 60
"""Differences that are named, the rest is counted; characters of a value."""

MAY_CHANGE = frozenset({
    # Stages, for runs and for latents.
    "description",
    # How samples are read and computed; does not affect the result.
    "data.workers", "data.prefetch", "data.reader", "model.checkpointing", "run.compile", "run.strategy",
    # Limits on broken data.
    "data.max_broken_share",
    # Locations of frozen parts: their digests tell whether the content is the same.
    "model.autoencoder", "model.image_encoder", "model.text_encoder",
    # Length of the run, and what it logs and saves.
    "run.steps", "run.log_every", "run.save_every", "run.keep_last", "run.keep_every",
    "run.sample_every", "run.sample_count", "run.sample_steps",
    # Shards and datasets: resource limits decide which inputs are rejected, not the results of the others.
    "scan.limits", "extraction.limits",
    # Datasets: duplicates are recomputed; batch sizes of models.
    "duplicates", "clip_embedder.batch_size", "captioners.coca.batch_size",
    # Endpoint location and retry policy.
    *(f"captioners.{name}.{key}" for name in ("video", "merged") for key in (
        "base_url", "api_key_env", "timeout_s", "retries", "max_in_flight", "give_up_after", "pause_s",
    )),
})  # fmt: skip
"""Settings that may change when a run is resumed, when latents or shards are added to a folder, or when a dataset
grows: they do not affect what is computed. Shards, frozen parts and models may have moved."""


def deciding(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The nested settings without those that may change; `path` is their dotted prefix, ending in a dot."""
    return {
        name: deciding(value, f"{path}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{path}{name}" not in MAY_CHANGE
    }


def check_same(
    where: str | Path,
    what: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    new_keys: bool = False,
    otherwise: str = "choose another --out",
) -> None:
    """Raise UserError where `where`, which holds `what` (a run, a dataset), was started with other settings: the one
    check of everything that is resumed. The arguments are those of `differences`; `otherwise` is what else to do."""
    differing = differences(before, now, ignored=ignored, new_keys=new_keys)
    if differing:
        named = shortened(differing, _NAMED_SETTINGS)
        raise UserError(
            f"{where} holds {what} with different settings ({named}): resume with the original ones, or {otherwise}"
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = (), new_keys: bool = False
) -> list[str]:
    """What differs between two nested configurations, one `group.key: was A, now B` per key, but for `MAY_CHANGE` and
    `ignored`. With `new_keys`, a group or key of a group that `before` lacks is newer than it, and no difference."""
    if new_keys:
        now = _known_to(before, now)
    exempt = {*MAY_CHANGE, *ignored}
    old, new = dict(_leaves(before, exempt)), dict(_leaves(now, exempt))
    return [
        f"{name}: was {_shown(old.get(name))}, now {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def shortened(listed: list[str], named: int = 3) -> str:
    """The first `named` of a list, and how many follow."""
    more = len(listed) - named
    return "; ".join(listed[:named]) + (f"; and {more} more" if more > 0 else "")


def _known_to(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`now` without the groups, and the keys of groups, that `before` lacks; deeper mappings are values."""
    return {
        name: {key: inner for key, inner in value.items() if key in before[name]}
        if isinstance(value, Mapping) and isinstance(before[name], Mapping)
        else value
        for name, value in now.items()
        if name in before
    }


def _leaves(values: Mapping[str, Any], exempt: Collection[str], path: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, JSON of the value), without what is exempt; an empty mapping is a value."""
    for key, value in values.items():
        name = f"{path}{key}"
        if name in exempt:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, exempt, f"{name}.")
        else:
            yield name, json.dumps(value, ensure_ascii=False)


def _shown(text: str | None) -> str:
    if text is None:
        return "absent"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
