"""Scorers by name: clipmill's own, and plug-ins, which need no line here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from clipmill.config import Config
from clipmill.errors import UserError
from clipmill.plugins import Plugin, find_plugin
from curation.scores.base import Scorer

GROUP = "clipmill.scorers"
"""Entry points of packages with scorers."""

SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "similarity": "curation.scores.similarity:Similarity",
        "aesthetic": "curation.scores.aesthetics:Aesthetic",
        "text_area": "curation.scores.text:TextArea",
    }
)
"""Clipmill's own, whose columns are those of the clips table."""


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer and its settings, as workers make it. Hashable, and can be pickled."""

    plugin: Plugin
    settings: str = "{}"
    """JSON, complete and checked."""

    def __call__(self) -> Scorer:
        """The scorer, not loaded."""
        kind = self.plugin.load()
        made: Scorer = kind(kind.Config.model_validate_json(self.settings))
        return made

    def values(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dict(json.loads(self.settings))


def scorer_spec(asked: str, settings: Config | Mapping[str, Any] | None = None) -> ScorerSpec:
    """Find a scorer by name or address and check its settings. Raises UserError."""
    plugin = find_plugin(asked, group=GROUP, built_in=SCORERS)
    kind = plugin.load()
    if not issubclass(kind, Scorer):
        raise UserError(f"{asked}: expected a subclass of curation.scores.base.Scorer, got {kind.__qualname__}")
    if not isinstance(settings, Config):
        settings = kind.Config.from_values(settings or {}, origin=f"scorers.{asked}")
    assert isinstance(settings, Config)
    return ScorerSpec(plugin, settings.model_dump_json())
