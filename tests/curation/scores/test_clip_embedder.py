"""Embeddings are those of open_clip by hand, whatever the batch; similarity and aesthetics are their plain algebra."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image as Pil

from clipmill.errors import UserError
from curation.inputs.caption import Caption
from curation.scores.aesthetics import Aesthetic, AestheticConfig
from curation.scores.base import ClipView, Embeddings
from curation.scores.clip_embedder import (
    ClipEmbedder,
    ClipEmbedderConfig,
    embedding_columns,
    mean_embedding,
    stored_mean,
)
from curation.scores.similarity import Similarity
from tests.curation.models import tiny_clip
from tests.media import texture

TEXTS = [
    "a red circle",
    "🎬 emoji and more 🎥",
    "שלום עולם، مرحبا",
    "word " * 2_000,
    "the camera pans over a green striped wall, slowly, and then stops",
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> ClipEmbedder:
    embedder = ClipEmbedder(ClipEmbedderConfig(model=str(tiny_clip(tmp_path_factory.mktemp("clip"))), batch_size=4))
    embedder.load()
    return embedder


def image(seed: int, height: int = 90, width: int = 160) -> Any:
    grey = texture(height, width, seed=seed)
    return np.stack([grey, np.roll(grey, seed, 1), 255 - grey], axis=-1).astype(np.uint8)


def view(seed: int, *texts: str | None, thumbnails: int = 3) -> ClipView:
    captions = tuple(Caption(source="list", text=text, error=None if text else "it failed") for text in texts)
    return ClipView(thumbnails=tuple(image(10 * seed + i) for i in range(thumbnails)), captions=captions)


VIEWS = [view(1, TEXTS[0]), view(2, *TEXTS), view(3), view(4, TEXTS[4], None), view(5, TEXTS[0], thumbnails=1)]


def by_hand(embedder: ClipEmbedder, images: Any, texts: list[str]) -> tuple[Any, Any]:
    """As open_clip's README does it, one at a time."""
    folder = embedder.weights.name
    network, preprocess = embedder._ready().model, embedder._ready().preprocess
    assert isinstance(network, open_clip.CLIP), folder
    with torch.no_grad():
        images = [
            network.encode_image(preprocess(Pil.fromarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB)))[None]) for p in images
        ]
        words = [network.encode_text(open_clip.tokenize([text])) for text in texts]
    return tuple(np.stack([(v / v.norm(dim=-1, keepdim=True))[0].numpy() for v in found]) for found in (images, words))


def test_embeddings_are_those_of_open_clip_by_hand(embedder: ClipEmbedder):
    found = embedder.embed(VIEWS)
    for seen, embeddings in zip(VIEWS, found, strict=True):
        texts = [c.text for c in seen.captions if c.text]
        images, words = by_hand(embedder, seen.thumbnails, texts or ["x"])
        assert embeddings.frames_FD is not None
        assert embeddings.captions_CD is not None
        assert np.abs(embeddings.frames_FD - images).max() < 1e-5
        known = embeddings.captions_CD[[bool(c.text) for c in seen.captions]] if seen.captions else words[:0]
        assert np.abs(known - words[: len(texts)]).max(initial=0) < 1e-5
        assert len({e.tobytes() for e in np.round(images, 4)}) == len(images), "the images must be told apart"


@pytest.mark.parametrize(("height", "width"), [(2, 640), (1, 641), (600, 4), (20, 300), (30, 240), (30, 241)])
def test_a_thin_picture_is_not_enlarged_as_a_whole(embedder: ClipEmbedder, height: int, width: int):
    """What the model sees is the middle, as without the limit; what is made in between stays small."""
    loaded, seen = embedder._ready(), Pil.fromarray(image(1, height, width))
    size = loaded.model.visual.image_size[0]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    middle = seen.resize((size, size), Pil.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    mean, std = (np.array(loaded.weights.preprocess[key], np.float32) for key in ("mean", "std"))
    expected = torch.from_numpy((np.array(middle, np.float32) / 255 - mean) / std).permute(2, 0, 1)
    assert (loaded.preprocess(seen) - expected).abs().mean() < 0.15

    made: list[tuple[int, int]] = []
    resize = Pil.Image.resize

    def noted(self: Any, to: tuple[int, int], *rest: Any, **more: Any) -> Any:
        made.append(to)
        return resize(self, to, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pil.Image, "resize", noted)
        loaded.preprocess(seen)
    assert made
    assert max(map(max, made)) < 10 * size


def test_similarity_is_the_mean_cosine_and_keeps_each_captions_own(embedder: ClipEmbedder):
    scores = Similarity().score(
        [ClipView(**{**vars(v), "embeddings": e}) for v, e in zip(VIEWS, embedder.embed(VIEWS), strict=True)]
    )
    images, words = by_hand(embedder, VIEWS[1].thumbnails, TEXTS)
    expected = (words @ images.T).mean(axis=1)
    # As exact as the dataset's embedding, in half precision, so that it gives the same for captions that come later.
    assert np.abs(np.array(scores[1]["similarity_captions"]) - expected).max() < 1e-4
    assert scores[1]["similarity"] == pytest.approx(expected.mean(), abs=1e-4)
    assert scores[2] == {"similarity": None, "similarity_captions": None, "similarity_error": "the clip has no caption"}
    assert scores[3]["similarity"] == scores[3]["similarity_captions"][0]
    assert scores[3]["similarity_captions"][1] is None


def test_nothing_depends_on_the_batch(embedder: ClipEmbedder):
    together = embedder.embed(VIEWS)
    for size in (1, 3, 64):
        embedder._config = embedder._config.model_copy(update={"batch_size": size})
        for seen, whole in zip(VIEWS, together, strict=True):
            (alone,) = embedder.embed([seen])
            assert alone.frames_FD is not None
            assert np.abs(alone.frames_FD - whole.frames_FD).max() < 1e-5
            assert np.nanmax(np.abs(np.subtract(alone.captions_CD, whole.captions_CD)), initial=0) < 1e-5


def test_the_clips_embedding_is_the_mean_direction(embedder: ClipEmbedder):
    (found,) = embedder.embed([VIEWS[0]])
    assert found.frames_FD is not None
    columns = embedding_columns(found)
    kept, mean = columns["embedding"], found.frames_FD.mean(axis=0)
    assert kept.dtype == np.float16
    assert columns["embedding_norm"] == pytest.approx(np.linalg.norm(mean), abs=1e-6)
    assert found.mean_D is not None
    assert np.abs(found.mean_D - mean).max() < 1e-3
    assert (
        stored_mean(pa.array([kept], pa.list_(pa.float16())).to_pylist()[0], columns["embedding_norm"]) == found.mean_D
    ).all()
    assert np.abs(kept - mean / np.linalg.norm(mean)).max() < 1e-3
    assert np.linalg.norm(kept.astype(np.float32)) == pytest.approx(1, abs=2e-3)


def test_a_clip_without_thumbnails_or_embeddings_is_null_with_a_reason(embedder: ClipEmbedder):
    (found,) = embedder.embed([ClipView(thumbnails=(), captions=(Caption(source="list", text="a"),))])
    empty = ClipView(thumbnails=(), captions=(Caption(source="list", text="a"),), embeddings=found)
    columns = embedding_columns(found)
    assert (columns["embedding"], columns["embedding_norm"]) == (None, None)
    assert (columns["embedding_error"], columns["embedding_error_kind"]) == ("the clip has no thumbnails", "failed")
    (similarity,) = Similarity().score([empty])
    assert (similarity["similarity"], "no thumbnails" in similarity["similarity_error"]) == (None, True)
    failed = ClipView(thumbnails=VIEWS[0].thumbnails, captions=(Caption(source="coca", error="time-out"),))
    (similarity,) = Similarity().score([replace(failed, embeddings=embedder.embed([failed])[0])])
    assert similarity["similarity_error"] == "no caption has text: time-out"


@pytest.mark.parametrize(("size", "file", "width"), [("large", "l_14", 768), ("small", "b_32", 512)])
def test_laions_heads_give_their_numbers(
    real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, file: str, width: int
):
    cache = tmp_path / ".cache" / "aesthetic_predictor"
    cache.mkdir(parents=True)
    name = f"sa_0_4_vit_{file}_linear.pth"
    (cache / name).write_bytes((real_weights / name).read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    known = torch.load(real_weights / name, weights_only=True)
    expected = (rows @ known["weight"].numpy().T + known["bias"].numpy()).mean()
    for head in (size, str(real_weights / name)):
        scorer = Aesthetic(AestheticConfig(head=head))
        scorer.load()
        assert scorer.embedding_width == width
        (score,) = scorer.score([ClipView(thumbnails=(), embeddings=Embeddings(frames_FD=rows))])
        assert score["aesthetic"] == pytest.approx(float(expected), abs=1e-5)


def test_the_numbers_of_the_large_head_as_published(real_weights: Path):
    scorer = Aesthetic(AestheticConfig(head=str(real_weights / "sa_0_4_vit_l_14_linear.pth")))
    scorer.load()
    axis = np.zeros((1, 768), np.float32)
    axis[0, 0] = 1
    (score,) = scorer.score([ClipView(thumbnails=(), embeddings=Embeddings(frames_FD=axis))])
    assert score["aesthetic"] == pytest.approx(5.402092, abs=1e-5)


def test_a_head_that_is_not_there_says_what_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        Aesthetic().load()
    for part in ("sa_0_4_vit_l_14_linear.pth", str(tmp_path), "--without aesthetic"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="neither a file nor one of LAION's"):
        Aesthetic(AestheticConfig(head="nowhere.pth")).load()


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match=r"this user has none: set HOME, or set `aesthetic: \{head: FILE\}`"):
        Aesthetic().load()


def test_a_head_of_another_shape_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(2, 768), "bias": torch.zeros(2)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"not an aesthetic head: expected tensors weight \(1, D\) and bias \(1,\)"):
        Aesthetic(AestheticConfig(head=str(tmp_path / "head.pth"))).load()


@pytest.mark.parametrize(
    ("weight", "bias", "said"), [((), (1,), "not an aesthetic head"), ((1, 3), (1,), "non-finite")]
)
def test_a_damaged_head_is_refused(tmp_path: Path, weight: tuple[int, ...], bias: tuple[int, ...], said: str):
    torch.save({"weight": torch.full(weight, torch.nan), "bias": torch.zeros(bias)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=said):
        Aesthetic(AestheticConfig(head=str(tmp_path / "head.pth"))).load()


def test_numbers_that_are_not_finite_are_no_score():
    rows = np.full((1, 4), np.nan, np.float32)
    found = Embeddings(mean_D=np.ones(4, np.float32), captions_CD=rows)
    view = ClipView(thumbnails=(), captions=(Caption(source="list", text="a"),), embeddings=found)
    (score,) = Similarity().score([view])
    assert (score["similarity"], score["similarity_error"]) == (None, "the model returned non-finite values")


def test_embeddings_are_kept_in_half_precision():
    rows = np.eye(4, dtype=np.float32)[:2]
    assert mean_embedding(rows)[0].tolist() == pytest.approx([0.7071, 0.7071, 0, 0], abs=1e-3)
