"""The rules on groups of clips for the page, which applies them as `curation.selection.groups` does."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.report.payload import Payload
from curation.selection.groups import group_rules
from curation.selection.rules import Balance, Rules


def groups_of(payload: Payload, rules: Rules, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Each rule in the order in which they run, with the place of each clip in its random order."""
    return [
        {
            "name": group.name,
            "column": group.by,
            "asked": group.asked,
            "clips": group.rule.clips,
            "power": group.rule.power if isinstance(group.rule, Balance) else None,
            "best": [list(pair) for pair in group.rule.best.items()],
            "unscored": group.rule.unscored,
            "order": payload.numbers(_random_places(group.rule.seed, clip_ids)),
        }
        for group in group_rules(rules)
    ]


def _random_places(seed: int, clip_ids: Sequence[str]) -> Any:
    """(N,) place of each clip by `random_order`, then by id."""
    keys = [(hashlib.md5(f"{seed}:{clip_id}".encode()).hexdigest(), clip_id) for clip_id in clip_ids]
    places = np.empty(len(keys), np.int32)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys), dtype=np.int32)
    return places
