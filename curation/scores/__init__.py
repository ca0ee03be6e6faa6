"""The registry of scorers that look at a clip's pictures: one line each, made from its own configuration."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from curation.scores.base import ClipView, Scorer
from curation.scores.text import TextArea

SCORERS: Mapping[str, Callable[[Any], Scorer]] = MappingProxyType({"text_area": TextArea})

__all__ = ["SCORERS", "ClipView", "Scorer"]
