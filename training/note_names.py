"""Names of what is noted about the samples of other tools, counted in `training.notes`."""

from collections.abc import Mapping
from typing import Any

CAPTION, MOTION, ELEVATION = "caption", "motion_bucket", "elevation"
"""Samples that lack this key."""
SEVERAL, FAILED, OTHER = "several", "failed", "other"
"""Samples with more than one video or picture; those that could not be downloaded; files of other kinds."""
REPEATED, OUTSIDE = "repeated", "outside"
"""Samples that a list names more than once; those outside its folder."""


def lacking(metadata: Mapping[str, Any]) -> list[str]:
    """The keys that a sample lacks, by its `training.metadata.sample_metadata`."""
    missing = [name for name in (MOTION, ELEVATION) if metadata["conditioning"].get(name) is None]
    return missing if any(caption.get("text") for caption in metadata["captions"]) else [CAPTION, *missing]
