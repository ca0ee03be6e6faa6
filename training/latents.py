"""Latents computed once: what a shard of them holds of a sample.

Beside KEY.json, KEY.latent.safetensors holds `mean` and `logvar` (T, C, H, W) of the frames' posterior in the
autoencoder's own units, `ends` (2, 3, H, W), the first and last frame as uint8 RGB, to which conditioning adds noise;
`embeddings` (2, C), CLIP's of these two; and `tokens.I` (N, C) for caption I. The floating point ones are fp16. The
JSON is the clip's, with a `latent` part: fps, picture, and what they were computed with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from training.frames import SampleError

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
    """The files of a sample by extension. `about` is the clip's JSON; `tokens` maps a caption's place to (N, C)."""
    tensors = {"mean": mean_TCHW.half(), "logvar": logvar_TCHW.half(), "ends": ends_ECHW}
    if embeddings_EC is not None:
        tensors["embeddings"] = embeddings_EC.half()
    tensors |= {f"tokens.{i}": tokens_NC.half() for i, tokens_NC in (tokens or {}).items()}
    latent = {"fps": fps, "picture": picture, **(made_with or {})}
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return {"json": json.dumps({**metadata, "latent": latent}).encode(), "latent.safetensors": content}


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What the latents of a stage look like, as far as its model decides it."""

    channels: int
    factor: int
    """Pixels per latent, along each axis."""
    context_width: int
    """Of embeddings and tokens."""


def read_latent(content: bytes, caption: int | None, shape: LatentShape | None = None) -> dict[str, Tensor]:
    """The tensors of a sample, floating point ones in float32; of the tokens those of `caption`, as `tokens`.

    Raises SampleError for what is no such file, and for tensors that are of another dtype or shape than they should be
    or not finite; without `shape` it is only judged whether they fit each other.
    """
    try:
        stored = load(content)
    except (SafetensorError, ValueError) as error:
        raise SampleError("bad_latent", str(error)) from error
    missing = [name for name in _NEEDED if name not in stored]
    if missing:
        raise SampleError("bad_latent", f"it holds no {', '.join(missing)}")
    tensors = {name: stored[name] for name in (*_NEEDED, "embeddings") if name in stored}
    tokens = stored.get(f"tokens.{caption}")
    if tokens is not None:
        tensors["tokens"] = tokens
    elif any(name.startswith("tokens.") for name in stored):
        raise SampleError("no_caption", f"there are tokens, but none of its caption {caption}")
    _check(tensors, shape)
    return {name: value if value.dtype == torch.uint8 else value.float() for name, value in tensors.items()}


def _check(tensors: Mapping[str, Tensor], shape: LatentShape | None) -> None:
    """Raise SampleError, naming the tensor, its dtype and its shape, for one that is not as it should be."""
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
            raise SampleError("bad_latent", f"its {name} should be {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.dtype != torch.uint8 and not tensor.isfinite().all():
            raise SampleError("bad_latent", f"its {name} holds values that are not finite")
    mean, logvar, ends = (tensors[name] for name in _NEEDED)
    factors = {pixels / latents for pixels, latents in zip(ends.shape[-2:], mean.shape[-2:], strict=True)}
    if mean.shape != logvar.shape or (factors != {shape.factor} if shape else len(factors) > 1):
        raise SampleError(
            "bad_latent",
            f"its tensors do not fit: mean {tuple(mean.shape)}, logvar {tuple(logvar.shape)}, ends {tuple(ends.shape)}",
        )
