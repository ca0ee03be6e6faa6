"""Settings of the near-duplicate search."""

from typing import Literal

from pydantic import Field

from clipmill.config import Config

HASH_BITS = 256
"""Of the hash of a picture."""


class DuplicatesConfig(Config):
    """Settings of the near-duplicate search, and which clip of a group is kept."""

    by: Literal["embedding", "picture_hash"] | None = None
    """What is compared: CLIP embeddings, or the perceptual hashes of the score picture_hash. null: embeddings if the
    dataset has any."""
    min_cosine: float = Field(0.95, gt=0, le=1)
    """Minimum cosine similarity of duplicates. The default is for CLIP ViT-L/14; see docs/duplicates.md."""
    max_hash_bits: float = Field(31, ge=0, lt=128)
    """Maximum number of differing bits of 256 between the pictures of duplicates, the mean of three, when hashes are
    compared. The default is that of PDQ."""
    same_source: bool = False
    """Whether clips of one source can be duplicates of each other. Neighboring clips of a long shot look alike."""
    max_duration_ratio: float | None = Field(None, ge=1)
    """Maximum ratio of the lengths of two duplicates; null disables the check."""
    order: tuple[Literal["resolution", "aesthetic", "duration"], ...] = ("resolution", "aesthetic", "duration")
    """Criteria for the best clip of a group, most important first: more pixels, a higher aesthetic score, more seconds.
    Ties are broken by clip_id."""
    exact_up_to: int = Field(200_000, ge=0)
    """Number of clips up to which the search is exact; above it is approximate."""
    probes: int = Field(8, ge=1)
    """Cells of the approximate index to search per clip. More find more duplicates and take longer."""
    block_clips: int = Field(512, ge=1)
    """Number of clips per search batch. Fewer use less memory."""

    @property
    def threshold(self) -> float:
        """Minimum cosine similarity of what is compared; hashes are vectors of 1 and -1."""
        return 1 - 2 * self.max_hash_bits / HASH_BITS if self.by == "picture_hash" else self.min_cosine
