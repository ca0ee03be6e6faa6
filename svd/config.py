"""UNet architectures of the paper: one frozen configuration, and one preset per model of sections 3 and 4."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from clipmill.config import unknown_name
from clipmill.errors import UserError
from svd.shape import Scale, Shape, Size, Sizes

Ids = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(strict=False, max_length=16)]


class UNetConfig(Shape):
    """Architecture of a UNet. Defaults to Stable Video Diffusion (section 4.3), 14 frames.

    Raises ValueError for invalid combinations.
    """

    in_channels: Annotated[int, Field(ge=1, le=1024)] = 8
    """Input channels: the noisy latent, then the concatenated conditioning."""
    out_channels: Size = 4
    """Output channels: those of a latent."""
    widths: Sizes = (320, 640, 1280, 1280)
    """Channels per level; the resolution halves between levels."""
    blocks_per_level: Annotated[int, Field(ge=1, le=8)] = 2
    """Residual blocks per level in the down path; the up path has one more."""
    attention: Annotated[tuple[bool, ...], Field(strict=False, max_length=16)] = (True, True, True, False)
    """Which levels have transformers. The middle block always has one."""
    head_width: Size = 64
    """Channels per attention head; must divide `widths`."""
    context_width: Size = 1024
    """Width of the text or CLIP embedding for cross-attention."""
    ids: Ids = (
        "fps_id",
        "motion_bucket",
        "noise_augmentation",
    )
    """Ids used for vector conditioning, in the order of `ids_BK`; empty for none."""
    id_width: Size = 256
    """Sinusoidal channels per id."""
    temporal: bool = True
    """Whether to insert temporal layers after the spatial ones. False for the image model, Stable Diffusion 2.1."""
    learned_mask: bool = False
    """Whether a learned embedding replaces the concatenated latent where the mask (the last channel) is 0."""
    groups: Size = 32
    """Number of GroupNorm groups; must divide `widths`."""
    norm_eps: Scale = 1e-5
    """GroupNorm eps of the residual blocks. The released weights were trained with 1e-5; diffusers uses 1e-6 in 36 of
    the 44 residual blocks, which changes its output by 1e-4.
    """
    frames: Annotated[int, Field(ge=1, le=4096)] = 14
    """Default number of frames. No tensor depends on it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.attention) != len(self.widths):
            raise ValueError(
                f"got {len(self.widths)} widths but {len(self.attention)} attention flags; pass one flag per level"
            )
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"width {width} is not a multiple of the {self.groups} groups of GroupNorm")
            if width % self.head_width:
                raise ValueError(f"width {width} is not a multiple of the head width {self.head_width}")
        if self.widths[0] % 2 or self.id_width % 2:
            raise ValueError(f"id_width and widths[0] must be even, got {self.id_width} and {self.widths[0]}")
        if self.learned_mask and self.in_channels != 2 * self.out_channels + 1:
            raise ValueError(
                f"learned_mask expects in_channels={2 * self.out_channels + 1} (noisy latent, latent, mask), "
                f"got {self.in_channels}"
            )
        return self

    @property
    def embedding_width(self) -> int:
        """Width of the noise level and id embedding that every residual block receives."""
        return 4 * self.widths[0]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Return the preset `name` with `overrides` applied.

        Raises UserError, suggesting the nearest name, for an unknown preset or field.
        """
        if name not in PRESETS:
            raise UserError(unknown_name("preset", name, list(PRESETS)))
        return cls.from_values(PRESETS[name].model_dump() | overrides, origin=f"preset {name}")


_SVD = UNetConfig()
_SD21 = _SVD.replace(in_channels=4, ids=(), temporal=False, frames=1)
_T2V = _SD21.replace(ids=("fps_id", "motion_bucket"), temporal=True, frames=14)

PRESETS: Mapping[str, UNetConfig] = {
    "sd21": _SD21,
    "svd": _SVD,
    "svd_xt": _SVD.replace(frames=25),
    "t2v": _T2V,
    "interpolation": _SVD.replace(in_channels=9, learned_mask=True, frames=5),
    "multiview": _SVD.replace(ids=(*_SVD.ids, "elevation"), frames=21),
    "tiny": _SVD.replace(
        widths=(64, 64, 96, 96), blocks_per_level=1, head_width=32, context_width=64, id_width=32, frames=8
    ),
}
"""Stable Diffusion 2.1 (stage I), text to video (stages II and III), image to video with 14 and 25 frames, frame
interpolation, multi-view (section 4), and a small network for tests and demos.
"""
