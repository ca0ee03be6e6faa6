"""The rules on groups of clips for the page, which applies them as `curation.selection.groups` does."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.report.payload import Payload
from curation.selection.groups import columns_of_groups, group_rules
from curation.selection.rules import Balance, MaxPer, Rules


def groups_of(payload: Payload, rules: Rules, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Each rule in the order in which they run, with the place of each clip in its random order."""
    limits: list[MaxPer | Balance] = [*rules.max_per.values(), *([rules.balance] if rules.balance else [])]
    asked = group_rules(rules)
    return [
        {
            "name": name,
            "column": column,
            "asked": asked[name],
            "clips": rule.clips,
            "power": rule.power if isinstance(rule, Balance) else None,
            "best": [list(pair) for pair in rule.best.items()],
            "unscored": rule.unscored,
            "order": payload.numbers(_random_places(rule.seed, clip_ids)),
        }
        for (name, column), rule in zip(columns_of_groups(rules).items(), limits, strict=True)
    ]


def _random_places(seed: int, clip_ids: Sequence[str]) -> Any:
    """(N,) place of each clip by `random_order`, then by id."""
    keys = [(hashlib.md5(f"{seed}:{clip_id}".encode()).hexdigest(), clip_id) for clip_id in clip_ids]
    places = np.empty(len(keys), np.int32)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys), dtype=np.int32)
    return places
