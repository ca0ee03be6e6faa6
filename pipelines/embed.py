"""CLIP embeddings of texts and pictures, in one call each: to search a dataset, or to compare with its clips.

texts_ND = clipmill.embed_texts(["a dog on a beach"], dataset="DATASET")
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil
from PIL import ImageOps

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.scores.clip_embedder import ClipEmbedder, ClipEmbedderConfig
from curation.video.resize import Image
from pipelines.model_specs import load_model
from pipelines.status import clip_digest

_MAX_FILE_BYTES = 64 << 20
_LARGEST_SIDE_PX = 16_384

Picture = str | Path | bytes | NDArray[np.uint8]
"""A file (a local path or any fsspec URL), the bytes of one, or a (height, width, 3) BGR image, as OpenCV reads it."""


def embed_texts(
    texts: Sequence[str],
    *,
    dataset: str | None = None,
    config: ClipEmbedderConfig | None = None,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """(text, width) rows of length 1, of CLIP. Times `embedding` of a clip: their cosine.

    `dataset`: use its model, of which the weights have to be there. `config`: another model, or where the weights are;
    given both, they have to be the same weights. The model stays loaded. Raises UserError: no weights, other weights
    than those of the dataset, or values that are not texts.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"expected a list of texts, got {texts!r}"[:200])
    return _embedder(dataset, config, device).embed_texts(texts)


def embed_images(
    images: Sequence[Picture],
    *,
    dataset: str | None = None,
    config: ClipEmbedderConfig | None = None,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """(image, width) rows of length 1, of CLIP; otherwise as `embed_texts`. Raises UserError for a picture that cannot
    be read, with its index in the list."""
    if isinstance(images, str | bytes | Path):
        raise UserError(f"expected a list of pictures, got {type(images).__name__}")
    read = [_image(image, number) for number, image in enumerate(images)]
    return _embedder(dataset, config, device).embed_images(read)


def _embedder(dataset: str | None, config: ClipEmbedderConfig | None, device: str) -> ClipEmbedder:
    opened = Dataset(dataset).open() if dataset is not None else None
    if opened is not None and config is None:
        recorded = opened.description()["config"].get("clip_embedder") or {}
        config = ClipEmbedderConfig.from_values(recorded, origin=f"clip_embedder of {opened.url}")
    embedder: ClipEmbedder = load_model(ClipEmbedder, config or ClipEmbedderConfig(), device)
    expected = clip_digest(opened) if opened is not None else None
    if expected not in (None, embedder.weights.digest()):
        raise UserError(
            f"{dataset} was embedded with other weights than those of {embedder.weights.name}: pass its model as config"
        )
    return embedder


def _image(image: Picture, number: int) -> Image:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"image {number}: expected (height, width, 3) uint8, got {image.shape} {image.dtype}")
        return image
    try:
        return _decoded(image if isinstance(image, bytes) else _content(str(image)))
    except FileNotFoundError as error:
        raise UserError(f"image {number}: file not found: {image!s}") from error
    except (
        UserError,
        OSError,
        ValueError,
        Pil.DecompressionBombError,
    ) as error:  # what Pillow raises for damaged files
        raise UserError(f"image {number}: {error}") from error


def _content(address: str) -> bytes:
    fs, path = storage.filesystem(address)
    return storage.read_limited(fs, path, max_bytes=_MAX_FILE_BYTES)


def _decoded(content: bytes) -> Image:
    """Upright, as its EXIF orientation says."""
    try:
        opened = Pil.open(io.BytesIO(content))
    except Pil.UnidentifiedImageError as error:  # its message names the buffer
        raise UserError("cannot identify image file: expected JPEG, PNG or another format of pictures") from error
    with opened as picture:
        if max(picture.size) > _LARGEST_SIDE_PX:
            raise UserError(f"it has {picture.width} x {picture.height} pixels, at most {_LARGEST_SIDE_PX} a side")
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))[:, :, ::-1].copy()
