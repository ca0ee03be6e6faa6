"""The registry of captioners, in the order in which they run: `merged` needs what the others wrote (paper 3.1)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from curation.captioners.coca import Coca
from curation.captioners.endpoint import MergedCaptioner, VideoCaptioner
from curation.scores.base import Captioner

CAPTIONERS: Mapping[str, Callable[[Any], Captioner]] = MappingProxyType(
    {"coca": Coca, "video": VideoCaptioner, "merged": MergedCaptioner}
)

__all__ = ["CAPTIONERS", "Captioner"]
