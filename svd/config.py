"""Shapes of the networks of the paper: one frozen configuration, and a preset per model of sections 3 and 4."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from clipmill.config import unknown_name
from clipmill.errors import UserError
from svd.shape import Scale, Shape, Size, Sizes

Ids = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(strict=False, max_length=16)]


class UNetConfig(Shape):
    """Shape of one UNet. The defaults are Stable Video Diffusion's (section 4.3), 14 frames.

    Raises ValueError for shapes that cannot be built.
    """

    in_channels: Annotated[int, Field(ge=1, le=1024)] = 8
    """Channels of the input: the noisy latent, then what is concatenated to it."""
    out_channels: Size = 4
    """Channels of the output: those of a latent."""
    widths: Sizes = (320, 640, 1280, 1280)
    """Channels per level; the resolution halves from one level to the next."""
    blocks_per_level: Annotated[int, Field(ge=1, le=8)] = 2
    """Residual blocks per level on the way down; there is one more on the way up."""
    attention: Annotated[tuple[bool, ...], Field(strict=False, max_length=16)] = (True, True, True, False)
    """Which levels have transformers. The middle has one always."""
    head_width: Size = 64
    """Channels per attention head; `widths` are multiples of it."""
    context_width: Size = 1024
    """Width of the text or CLIP embedding that attention sees."""
    ids: Ids = (
        "fps_id",
        "motion_bucket",
        "noise_augmentation",
    )
    """What the vector conditioning holds, in the order of `ids_BK`; empty for a network without one."""
    id_width: Size = 256
    """Sinusoids per id."""
    temporal: bool = True
    """Whether temporal layers follow the spatial ones. False is the image model, Stable Diffusion 2.1."""
    learned_mask: bool = False
    """Whether a learned embedding stands in for the concatenated latent where the mask (the last channel) is 0."""
    groups: Size = 32
    """Groups of GroupNorm; `widths` are multiples of it."""
    norm_eps: Scale = 1e-5
    """Eps of the residual blocks' GroupNorm. The released weights were trained with 1e-5; diffusers has 1e-6 in 36 of
    the 44 residual normalisations' blocks, which changes its output by 1e-4."""
    frames: Annotated[int, Field(ge=1, le=4096)] = 14
    """Frames the model is made for. No tensor depends on it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.attention) != len(self.widths):
            raise ValueError(f"{len(self.widths)} widths but {len(self.attention)} attention flags: give one per level")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"width {width} is not a multiple of the {self.groups} groups of GroupNorm")
            if width % self.head_width:
                raise ValueError(f"width {width} is not a multiple of the head width {self.head_width}")
        if self.widths[0] % 2 or self.id_width % 2:
            raise ValueError(
                f"sinusoids come in pairs: id_width {self.id_width} and widths[0] {self.widths[0]} must be even"
            )
        if self.learned_mask and self.in_channels != 2 * self.out_channels + 1:
            raise ValueError(
                f"a learned mask takes {2 * self.out_channels + 1} input channels (noisy latent, latent, mask), "
                f"not {self.in_channels}"
            )
        return self

    @property
    def embedding_width(self) -> int:
        """Width of the embedding of noise level and ids that every residual block receives."""
        return 4 * self.widths[0]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset `name`, with fields replaced by `overrides`.

        Raises UserError, with the nearest name, for an unknown preset or field.
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
"""Stable Diffusion 2.1 (stage I), image to video with 14 and 25 frames, text to video (stage II and III), frame
interpolation, multi-view (section 4), and a network of a few million parameters for tests and demos."""
