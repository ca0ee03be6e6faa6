"""Configuration with the CLIP model in this repository, which is only meant for rendered footage."""

from pathlib import Path

from curation.dedup.duplicates import DuplicatesConfig
from curation.scores.aesthetics import AestheticConfig
from curation.scores.clip_embedder import ClipEmbedderConfig
from pipelines.config import CurateConfig

FOLDER = Path(__file__).with_name("clip")
MIN_COSINE = 0.86
"""Cosine that separates copies from different scenes of rendered footage with this model."""


def demo_config() -> CurateConfig:
    """Curation with the demo's models instead of ViT-L-14 and LAION's head."""
    return CurateConfig(
        clip_embedder=ClipEmbedderConfig(model=str(FOLDER), pretrained=None),
        aesthetic=AestheticConfig(head=str(FOLDER / "aesthetic.safetensors")),
        duplicates=DuplicatesConfig(min_cosine=MIN_COSINE),
    )
