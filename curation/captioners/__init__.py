"""Captioners by name: clipmill's own, and plug-ins, which need no line here (paper 3.1)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from clipmill.config import Config
from curation.captioners.base import Captioner, GeneratedCaption
from curation.scores.registry import ScorerSpec, plugin_spec

GROUP = "clipmill.captioners"
"""Entry points of packages with captioners."""

CAPTIONERS: Mapping[str, str] = MappingProxyType(
    {
        "coca": "curation.captioners.coca:Coca",
        "video": "curation.captioners.endpoint:VideoCaptioner",
        "merged": "curation.captioners.endpoint:MergedCaptioner",
    }
)
"""Clipmill's own, in the order in which they run: `merged` needs what the others wrote."""

__all__ = ["CAPTIONERS", "Captioner", "GeneratedCaption", "captioner_spec"]


def captioner_spec(asked: str, settings: Config | Mapping[str, Any] | None = None) -> ScorerSpec:
    """Find a captioner by name or address and check its settings. Raises UserError."""
    return plugin_spec(asked, settings, group=GROUP, built_in=CAPTIONERS, base=Captioner)
