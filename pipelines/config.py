"""The configuration of a curation run: one YAML file, unknown keys rejected, saved with the dataset."""

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, field_validator

from clipmill.config import Config, known_name
from clipmill.resume import deciding
from curation.captioners import CAPTIONERS
from curation.captioners.coca import CocaConfig
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.dedup.duplicates import DuplicatesConfig
from curation.inputs.sources import InputsConfig
from curation.scan.one_pass import ScanConfig
from curation.scores.aesthetics import AestheticConfig
from curation.scores.clip_embedder import ClipEmbedderConfig
from curation.scores.columns import SCORE_COLUMNS
from curation.scores.text import TextConfig


class CaptionersConfig(Config):
    """Captioners to run, in this order. Each one with settings runs; `coca: {}` uses the defaults. `clipmill caption`
    takes the settings of its captioner from here as well."""

    coca: CocaConfig | None = None
    """CoCa on the middle frame. null disables it."""
    video: VideoConfig | None = None
    """A video captioner behind an OpenAI-compatible endpoint, which receives frames or the clip. null disables it."""
    merged: MergedConfig | None = None
    """A language model behind an OpenAI-compatible endpoint, which merges the other two captions. null disables it."""
    others: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Further captioners, by the name of an installed plug-in or by address (`module:Class`, `path/file.py:Class`),
    each with its settings. They run last."""

    def asked(self) -> dict[str, Config | dict[str, JsonValue]]:
        """Name or address -> settings, in the order in which they run."""
        own = {name: getattr(self, name) for name in CAPTIONERS}
        return {name: settings for name, settings in (own | self.others).items() if settings is not None}


class CurateConfig(Config):
    """Everything that determines the content of a dataset: scan settings, and the settings of each scorer under its
    name."""

    inputs: InputsConfig = Field(default_factory=InputsConfig)
    """Listing of the inputs."""
    scan: ScanConfig = Field(default_factory=ScanConfig)
    """Scan of each source: cuts, clips, motion, and resource limits."""
    captioners: CaptionersConfig = Field(default_factory=CaptionersConfig)
    """Captioners to run."""
    clip_embedder: ClipEmbedderConfig = Field(default_factory=ClipEmbedderConfig)
    """CLIP model for similarity, aesthetics and embeddings."""
    aesthetic: AestheticConfig = Field(default_factory=AestheticConfig)
    """Aesthetic score."""
    text_area: TextConfig = Field(default_factory=TextConfig)
    """On-screen text score."""
    scorers: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Further scorers, by the name of an installed plug-in or by address (`module:Class`, `path/file.py:Class`), each
    with its settings; `{}` uses its defaults. `clipmill score` adds them to existing clips."""
    duplicates: DuplicatesConfig | None = Field(default_factory=DuplicatesConfig)
    """Near-duplicate search at the end of a run. null disables it."""
    without: tuple[str, ...] = ()
    """Scores to skip: similarity, aesthetic, text_area."""

    @field_validator("without")
    @classmethod
    def _are_scores(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({known_name("score", name, SCORE_COLUMNS) for name in names}))

    def described(self) -> dict[str, Any]:
        """The settings that determine the rows of a dataset: without those that may change (`clipmill.resume`) and file
        locations."""
        values = deciding(self.model_dump(mode="json"))
        captioners = values["captioners"] = {k: v for k, v in values["captioners"].items() if v}
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
