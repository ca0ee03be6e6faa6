"""What a curation run is configured with: one YAML file, unknown keys refused, all of it saved with the dataset."""

from pydantic import Field

from curation.scan import ScanConfig
from curation.scores.text import TextConfig


class CurateConfig(ScanConfig):
    """Everything that decides what a curated dataset holds: the scan's settings, and each scorer's under its name."""

    text_area: TextConfig = Field(default_factory=TextConfig)
