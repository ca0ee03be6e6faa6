"""What a curation run is configured with: one YAML file, unknown keys refused, all of it saved with the dataset."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from clipmill.config import Config, known_name
from clipmill.resume import deciding
from curation.captioners.coca import CocaConfig
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.dedup.duplicates import DuplicatesConfig
from curation.scan.one_pass import ScanConfig
from curation.scores.aesthetics import AestheticConfig
from curation.scores.clip_embedder import ClipEmbedderConfig
from curation.scores.columns import SCORE_COLUMNS
from curation.scores.text import TextConfig


class CaptionersConfig(Config):
    """Captioners that run, in this order: each for which there are settings (`coca: {}` takes the defaults)."""

    coca: CocaConfig | None = None
    """CoCa on the middle frame; null: not run."""
    video: VideoConfig | None = None
    """A video captioner behind an OpenAI-compatible endpoint, which gets the three thumbnails; null: not run."""
    merged: MergedConfig | None = None
    """A language model behind an OpenAI-compatible endpoint, which merges the other two captions; null: not run."""


class CurateConfig(Config):
    """Everything that decides what a curated dataset holds: the scan's settings, and each scorer's under its name."""

    scan: ScanConfig = Field(default_factory=ScanConfig)
    """The scan of each source: its cuts, clips and motion, and what it may cost."""
    captioners: CaptionersConfig = Field(default_factory=CaptionersConfig)
    """Which captioners run."""
    clip_embedder: ClipEmbedderConfig = Field(default_factory=ClipEmbedderConfig)
    """The CLIP model behind similarity, aesthetics and embeddings."""
    aesthetic: AestheticConfig = Field(default_factory=AestheticConfig)
    """The aesthetic score."""
    text_area: TextConfig = Field(default_factory=TextConfig)
    """The score of on-screen text."""
    duplicates: DuplicatesConfig | None = Field(default_factory=DuplicatesConfig)
    """The search for near-duplicates at the end of a run; null: none."""
    without: tuple[str, ...] = ()
    """Scores to leave out: similarity, aesthetic, text_area."""

    @field_validator("without")
    @classmethod
    def _are_scores(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({known_name("score", name, SCORE_COLUMNS) for name in names}))

    def described(self) -> dict[str, Any]:
        """What decides the rows of a dataset: without what may change (`clipmill.resume`), nor where files are kept."""
        values = deciding(self.model_dump(mode="json"))
        captioners = values["captioners"] = {k: v for k, v in values["captioners"].items() if v is not None}
        for section, key in (
            (values["clip_embedder"], "model"),
            (values["clip_embedder"], "pretrained"),
            (values["aesthetic"], "head"),
            (captioners.get("coca", {}), "model"),
            (captioners.get("coca", {}), "pretrained"),
        ):
            if (given := section.get(key)) and Path(given).exists():
                section[key] = Path(given).name
        return values
