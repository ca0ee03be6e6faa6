"""Resume a run, latents, shards or a dataset: which settings may change, and the error for those that may not."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from clipmill.errors import UserError

_NAMED_SETTINGS, _SHOWN = 5, 60
"""Differences to list in an error, and characters to show of a value."""

MAY_CHANGE = frozenset({
    # Stages, for runs and for latents.
    "description",
    # How samples are read and computed; does not affect the result.
    "data.workers", "data.prefetch", "data.reader",
    "data.read_ahead_mib", "data.cache_gib", "data.cache_folder", "data.retry_s",
    "model.checkpointing", "run.compile", "run.strategy",
    # Limits on broken data.
    "data.max_broken_share",
    # Locations of frozen parts: their digests tell whether the content is the same.
    "model.autoencoder", "model.image_encoder", "model.text_encoder",
    # Length of the run, and what it logs and saves.
    "run.steps", "run.log_every", "run.save_every", "run.keep_last", "run.keep_every",
    "run.sample_every", "run.sample_count", "run.sample_steps",
    # Shards and datasets: resource limits decide which inputs are rejected, not the results of the others.
    "scan.limits", "extraction.limits", "inputs",
    # Datasets: duplicates are recomputed, further scores have versions of their own; batch sizes of models.
    "duplicates", "scorers", "clip_embedder.batch_size", "captioners.coca.batch_size",
    # Endpoint location and retry policy.
    *(f"captioners.{name}.{key}" for name in ("video", "merged") for key in (
        "base_url", "api_key_env", "timeout_s", "retries", "max_in_flight", "give_up_after", "pause_s",
        "price_per_million_prompt_tokens", "price_per_million_completion_tokens",
    )),
})  # fmt: skip
"""Settings that may change when a run is resumed, when latents or shards are added to a folder, or when a dataset
grows, because they do not affect results. Shards, frozen parts and models may move.
"""


def deciding(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Drop the settings that may change from nested settings. `path` is their dotted prefix, ending in a dot."""
    return {
        name: deciding(value, f"{path}{name}.") if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if f"{path}{name}" not in MAY_CHANGE
    }


def check_same(
    where: str | Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignored: Collection[str] = (),
    new_keys: bool = False,
    otherwise: str = "choose another --out",
) -> None:
    """Raise UserError that names the differences if the folder `where` was started with different settings.

    `otherwise` is the alternative to suggest. The other arguments are those of `differences`.
    """
    differing = differences(before, now, ignored=ignored, new_keys=new_keys)
    if differing:
        named = shortened(differing, _NAMED_SETTINGS)
        raise UserError(
            f"{where} was started with different settings ({named}): resume with the original ones, or {otherwise}"
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = (), new_keys: bool = False
) -> list[str]:
    """List the settings that differ, each as `group.key: was A, now B`.

    Ignores `MAY_CHANGE` and `ignored`. With `new_keys`, settings that `before` lacks are ignored too: an older version
    did not know them.
    """
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
    """Join the first `named` entries of a list and the number of the others."""
    more = len(listed) - named
    return "; ".join(listed[:named]) + (f"; and {more} more" if more > 0 else "")


def _known_to(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Restrict `now` to the groups, and the keys of groups, in `before`. Deeper mappings are values."""
    return {
        name: {key: inner for key, inner in value.items() if key in before[name]}
        if isinstance(value, Mapping) and isinstance(before[name], Mapping)
        else value
        for name, value in now.items()
        if name in before
    }


def _leaves(values: Mapping[str, Any], exempt: Collection[str], path: str = "") -> Iterable[tuple[str, str]]:
    """Yield (dotted name, JSON of the value) of each setting that is not exempt. An empty mapping is a value."""
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
