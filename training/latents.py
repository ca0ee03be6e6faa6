"""Latents computed once: what a shard of them holds of a sample.

Beside KEY.json, KEY.latent.safetensors holds `mean` and `logvar` (T, C, H, W) of the frames' posterior in the
autoencoder's own units, `ends` (2, 3, H, W), the first and last frame as uint8 RGB, to which conditioning adds noise;
`embeddings` (2, C), CLIP's of these two; and `tokens.I` (N, C) for caption I. The floating point ones are fp16. The
JSON is the clip's, with a `latent` part: fps, picture, and what they were computed with.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from training.frames import SampleError

_NEEDED = ("mean", "logvar", "ends")


def latent_members(
    about: Mapping[str, Any],
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
    return {"json": json.dumps({**about, "latent": latent}).encode(), "latent.safetensors": content}


def read_latent(content: bytes, caption: int | None) -> dict[str, Tensor]:
    """The tensors of a sample, floating point ones in float32; of the tokens those of `caption`, as `tokens`.

    Raises SampleError for what is no such file.
    """
    try:
        stored = load(content)
    except (SafetensorError, ValueError) as error:
        raise SampleError("bad_latent", str(error)) from error
    lost = [name for name in _NEEDED if name not in stored]
    if lost:
        raise SampleError("bad_latent", f"it holds no {', '.join(lost)}")
    kept = {name: stored[name] for name in (*_NEEDED, "embeddings") if name in stored}
    tokens = stored.get(f"tokens.{caption}")
    if tokens is not None:
        kept["tokens"] = tokens
    elif any(name.startswith("tokens.") for name in stored):
        raise SampleError("no_caption", f"there are tokens, but none of its caption {caption}")
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in kept.items()}
