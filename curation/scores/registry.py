"""The registry of scorers that look at a clip's thumbnails: one line each, made from its own configuration if any."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from curation.scores.aesthetics import Aesthetic
from curation.scores.base import Scorer
from curation.scores.similarity import Similarity
from curation.scores.text import TextArea

SCORERS: Mapping[str, Callable[..., Scorer]] = MappingProxyType(
    {"similarity": Similarity, "aesthetic": Aesthetic, "text_area": TextArea}
)
