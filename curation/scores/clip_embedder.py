"""CLIP embeddings of clips: one forward pass over thumbnails and captions serves every score that needs them.

Paper 3.1 and App. C: embeddings of the first, middle and last frame, and of each caption.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from clipmill.config import Config
from clipmill.pipeline import Resources
from curation.inputs.caption import Caption
from curation.scores import openclip
from curation.scores.base import ClipView, Embeddings
from curation.scores.columns import EMBEDDING_COLUMNS, FAILED
from curation.video.resize import Image

_T = TypeVar("_T")


class ClipEmbedderConfig(Config):
    """CLIP model and inference settings."""

    model: str = "ViT-L-14"
    """An open_clip model name, a folder with open_clip_config.json and weights, or hf-hub:OWNER/NAME."""
    pretrained: str | None = "openai"
    """A tag of the open_clip model, or a checkpoint file; a folder or a hf-hub model brings its own weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU. On CPUs with AMX or AVX-512's bf16, bf16 is two to
    three times as fast; scores then differ by about 1e-3."""
    batch_size: int = Field(32, ge=1)
    """Images or captions per forward pass. Does not affect scores."""

    @field_validator("model", "pretrained")
    @classmethod
    def _absolute(cls, given: str | None) -> str | None:
        """Workers run in other working directories."""
        return os.path.abspath(given) if given and os.path.exists(given) else given


class ClipEmbedder:
    """A CLIP model that embeds the thumbnails and captions of clips."""

    name = "clip_embedder"
    needs: tuple[str, ...] = ("thumbnails", "captions")
    gives = ("embeddings", "mean_embedding", *(column.name for column in EMBEDDING_COLUMNS))

    def __init__(self, config: ClipEmbedderConfig | None = None) -> None:
        self._config = config or ClipEmbedderConfig()
        self._device = "cpu"
        self._loaded: openclip.Loaded | None = None
        self.resources = Resources(num_gpus=1, max_cpus=4)

    @property
    def weights(self) -> openclip.Weights:
        """Of the model that is loaded."""
        return self._ready().weights

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.embed_texts(["a"]).shape[1]

    def load(self, device: str = "cpu") -> None:
        """Load the model. Raises UserError where its weights are missing or unfit (see `openclip.load`)."""
        import torch

        self._device = device
        self._loaded = openclip.load(self._config.model, self._config.pretrained, device)
        bf16 = self._config.precision == "bf16" or (self._config.precision == "auto" and device != "cpu")
        self.resources = replace(self.resources, memory_bytes=self.weights.size_bytes)
        self._loaded.model.to(dtype=torch.bfloat16 if bf16 else torch.float32, memory_format=torch.channels_last)

    def embed(self, batch: Sequence[ClipView]) -> list[Embeddings]:
        """Embeddings of every clip, in order, for batches and clips of any size."""
        captions = self.embed_captions([view.captions for view in batch])
        image_rows = iter(self.embed_images([image for view in batch for image in view.thumbnails]))
        embedded = []
        for view, captions_CD in zip(batch, captions, strict=True):
            if not view.thumbnails:
                embedded.append(Embeddings(error="the clip has no thumbnails"))
                continue
            rows_FD = np.stack([next(image_rows) for _ in view.thumbnails])
            if not np.isfinite(rows_FD).all():
                embedded.append(Embeddings(error="the model returned non-finite values"))
                continue
            mean_D = stored_mean(*mean_embedding(rows_FD))
            embedded.append(Embeddings(frames_FD=rows_FD, captions_CD=captions_CD, mean_D=mean_D))
        return embedded

    def embed_captions(self, batch: Sequence[Sequence[Caption]]) -> list[NDArray[np.float32]]:
        """(caption, width) rows of each clip; of NaN for captions without text. Each text runs once."""
        texts = list(dict.fromkeys(c.text for captions in batch for c in captions if c.text))
        rows_ND = self.embed_texts(texts)
        row_of, width = dict(zip(texts, rows_ND, strict=True)), rows_ND.shape[1] if texts else self.width
        unknown_D = np.full(width, np.nan, np.float32)
        return [
            np.array([row_of.get(c.text or "", unknown_D) for c in captions], np.float32).reshape(len(captions), width)
            for captions in batch
        ]

    def embed_images(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """(image, width) float32 rows of length 1, of (height, width, 3) uint8 BGR images of any sizes."""
        import torch
        from PIL import Image as Pil

        loaded, rows = self._ready(), []
        dtype = next(loaded.model.parameters()).dtype
        for some in self._batches(images):
            inputs = [loaded.preprocess(Pil.fromarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))) for bgr in some]
            batch_NCHW = torch.stack(inputs).to(self._device, dtype, memory_format=torch.channels_last)
            with torch.inference_mode():
                rows.append(_unit_rows(loaded.model.encode_image(batch_NCHW)))
        return _stacked(rows)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(text, width) float32 rows of length 1; text beyond the model's context length is ignored."""
        import torch

        loaded, rows = self._ready(), []
        for some in self._batches(texts):
            tokens_NL = loaded.tokenizer(list(some)).to(self._device)
            with torch.inference_mode():
                rows.append(_unit_rows(encode_text(loaded.model, tokens_NL)))
        return _stacked(rows)

    def _batches(self, items: Sequence[_T]) -> Iterator[Sequence[_T]]:
        size = self._config.batch_size
        return (items[i : i + size] for i in range(0, len(items), size))

    def _ready(self) -> openclip.Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded


def encode_text(model: Any, tokens_NL: Any) -> Any:
    """`model.encode_text`, without the padding behind the longest text where the model allows for that.

    OpenAI's text tower is causal and reads its answer at the end-of-text token (the largest number): what comes after
    it changes nothing, and captions are mostly much shorter than the 77 tokens of the context.
    """
    import torch
    from open_clip import CLIP

    if type(model) is not CLIP or model.text_pool_type != "argmax" or model.attn_mask is None:
        return model.encode_text(tokens_NL)
    end_N = tokens_NL.argmax(dim=-1)
    length = int(end_N.max()) + 1
    dtype = model.transformer.get_cast_dtype()
    x_NLD = model.token_embedding(tokens_NL[:, :length]).to(dtype) + model.positional_embedding[:length].to(dtype)
    x_NLD = model.ln_final(model.transformer(x_NLD, attn_mask=model.attn_mask[:length, :length]))
    pooled_ND = x_NLD[torch.arange(len(x_NLD), device=x_NLD.device), end_N]
    projection = model.text_projection
    if projection is None:
        return pooled_ND
    return projection(pooled_ND) if isinstance(projection, torch.nn.Linear) else pooled_ND @ projection


def mean_embedding(frames_FD: NDArray[np.float32]) -> tuple[NDArray[np.float16], float]:
    """The clip's embedding: the mean of its thumbnails' rows, scaled to length 1, and the length that it had."""
    mean_D = frames_FD.mean(axis=0)
    norm = float(np.float32(np.linalg.norm(mean_D)))
    return (mean_D / max(norm, 1e-12)).astype(np.float16), norm


def stored_mean(embedding_D: Any, norm: float) -> NDArray[np.float32]:
    """The mean of the thumbnails' rows from the columns embedding and embedding_norm."""
    return np.asarray(embedding_D, np.float16).astype(np.float32) * np.float32(norm)


def embedding_columns(embeddings: Embeddings) -> dict[str, Any]:
    """Columns of the embedding of one clip."""
    if embeddings.frames_FD is None:
        nothing = {"embedding": None, "embedding_norm": None}
        return nothing | {"embedding_error": embeddings.error, "embedding_error_kind": FAILED}
    embedding_D, norm = mean_embedding(embeddings.frames_FD)
    values = {"embedding": embedding_D, "embedding_norm": norm}
    return values | {"embedding_error": None, "embedding_error_kind": None}


def _unit_rows(features_ND: Any) -> NDArray[np.float32]:
    features_ND = features_ND.float()
    rows_ND: NDArray[np.float32] = (features_ND / features_ND.norm(dim=-1, keepdim=True)).cpu().numpy()
    return rows_ND


def _stacked(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
