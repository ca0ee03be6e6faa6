"""Format of cached latents in a shard.

Next to KEY.json, KEY.latent.safetensors stores `mean` and `logvar` (T, C, H, W) of the frames' posterior, unscaled;
`ends` (2, 3, H, W), the first and last frame as uint8 RGB, to which conditioning adds noise; `embeddings` (2, C), the
CLIP embeddings of these two; and `tokens.I` (N, C) for caption I. Floating point tensors are fp16. The JSON is the
clip's with an added `latent` object: fps, picture, and the networks they were computed with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from training.sample_error import SampleError

_NEEDED = ("mean", "logvar", "ends")


def latent_members(
    metadata: Mapping[str, Any],
    *,
    mean_TCHW: Tensor,
    logvar_TCHW: Tensor,
    ends_ECHW: Tensor,
    fps: float,
    picture: bool,
    embeddings_EC: Tensor | None = None,
    tokens: Mapping[int, Tensor] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Files of a sample by extension. `metadata` is the clip's JSON; `tokens` maps a caption index to (N, C)."""
    tensors = {"mean": mean_TCHW.half(), "logvar": logvar_TCHW.half(), "ends": ends_ECHW}
    if embeddings_EC is not None:
        tensors["embeddings"] = embeddings_EC.half()
    tensors |= {f"tokens.{i}": tokens_NC.half() for i, tokens_NC in (tokens or {}).items()}
    latent = {"fps": fps, "picture": picture, **(made_with or {})}
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return {"json": json.dumps({**metadata, "latent": latent}).encode(), "latent.safetensors": content}


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Expected shape of a stage's latents, as determined by its model."""

    channels: int
    factor: int
    """Downsampling factor of latents along each axis."""
    context_width: int
    """Width of embeddings and tokens."""


def read_latent(content: bytes, caption: int | None, shape: LatentShape | None = None) -> dict[str, Tensor]:
    """Read the tensors of a sample, floating point ones as float32; the tokens are those of `caption`, as `tokens`.

    Raises SampleError for an invalid file, an unexpected dtype or shape, and non-finite values; without `shape` the
    tensors are only checked against each other.
    """
    try:
        stored = load(content)
    except (SafetensorError, ValueError) as error:
        raise SampleError("bad_latent", str(error)) from error
    missing = [name for name in _NEEDED if name not in stored]
    if missing:
        raise SampleError("bad_latent", f"missing {', '.join(missing)}")
    tensors = {name: stored[name] for name in (*_NEEDED, "embeddings") if name in stored}
    tokens = stored.get(f"tokens.{caption}")
    if tokens is not None:
        tensors["tokens"] = tokens
    elif any(name.startswith("tokens.") for name in stored):
        raise SampleError("no_caption", f"has tokens, but none for caption {caption}")
    _check(tensors, shape)
    return {name: value if value.dtype == torch.uint8 else value.float() for name, value in tensors.items()}


def _check(tensors: Mapping[str, Tensor], shape: LatentShape | None) -> None:
    """Raise SampleError with the tensor's name, dtype and shape if it is not as expected."""
    channels = "C" if shape is None else shape.channels
    width = "C" if shape is None else shape.context_width
    latent = ("T", channels, "H", "W")
    expected = {"mean": latent, "logvar": latent, "ends": (2, 3, "H", "W"), "embeddings": (2, width),
                "tokens": ("N", width)}  # fmt: skip
    for name, tensor in tensors.items():
        dtypes = (torch.uint8,) if name == "ends" else (torch.float16, torch.bfloat16, torch.float32)
        fits = tensor.ndim == len(expected[name]) and all(
            size > 0 and size == (size if isinstance(wanted, str) else wanted)
            for size, wanted in zip(tensor.shape, expected[name], strict=True)
        )
        if tensor.dtype not in dtypes or not fits:
            wanted = f"{' or '.join(map(str, dtypes))} ({', '.join(map(str, expected[name]))})"
            raise SampleError("bad_latent", f"{name} must be {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.dtype != torch.uint8 and not tensor.isfinite().all():
            raise SampleError("bad_latent", f"{name} contains non-finite values")
    mean, logvar, ends = (tensors[name] for name in _NEEDED)
    factors = {pixels / latents for pixels, latents in zip(ends.shape[-2:], mean.shape[-2:], strict=True)}
    if mean.shape != logvar.shape or (factors != {shape.factor} if shape else len(factors) > 1):
        raise SampleError(
            "bad_latent",
            f"incompatible shapes: mean {tuple(mean.shape)}, logvar {tuple(logvar.shape)}, ends {tuple(ends.shape)}",
        )
