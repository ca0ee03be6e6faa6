"""Evaluate the demo's CLIP on unseen clips in the real pipeline: rendered, encoded, scanned, scored.

    python -m demo.clip_check [--folder FOLDER] [--videos N]

Sizes: N clips, K copies of each, D = embed_dim.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file

from clipmill.video_writer import Encoding
from curation.inputs.sources import list_sources
from curation.scan.one_pass import scan
from curation.video.decode import Video
from demo.clip_data import PICTURE_LONG_SIDE_PX, stored
from footage.altered import DEGRADATIONS, Copy, copied, degraded, transcoded, upright
from footage.corpus import corpus_specs
from footage.render import render
from footage.scenes import Picture
from footage.timeline import VideoSpec
from footage.truth import Truth

HELD_BACK_SEED = 2_000_000
"""Corpora with this seed and above are never used for training."""
FOLDER = Path(__file__).with_name("clip")

Change = tuple[Callable[[Picture], Picture], Encoding]
Pictures = tuple[bytes, ...]
"""The first, middle and last picture of a clip, as JPEG."""
Floats = NDArray[np.float32]

COPIES: Mapping[str, Change] = MappingProxyType(
    {
        "low bitrate": (partial(copied, copy=Copy()), Encoding(crf=36)),
        "half the size": (partial(copied, copy=Copy(scale=0.5)), Encoding(codec="vp9", crf=28)),
        "cropped by 5 %": (partial(copied, copy=Copy(crop=(0.05, 0.0, 0.0, 0.05))), Encoding(crf=26)),
        "cropped all round": (partial(copied, copy=Copy(crop=(0.025, 0.025, 0.025, 0.025))), Encoding(crf=26)),
        "with a logo": (partial(copied, copy=Copy(logo_color="white", logo_corner=(1, 1))), Encoding(crf=26)),
    }
)
"""Alterations of a typical re-upload."""

_STRENGTH = 0.5
_COMPRESSION_CRF = 46
_CANDIDATES = 16


def degradations(seed: int = 0) -> dict[str, Change]:
    """Each of `DEGRADATIONS` at medium strength: an image alteration and an encoding."""
    rng = np.random.default_rng(seed)
    changes: dict[str, Change] = {
        kind: (partial(degraded, kind=kind, strength=_STRENGTH, rng=rng), Encoding()) for kind in DEGRADATIONS
    }
    changes["compression"] = (lambda picture: picture, Encoding(crf=_COMPRESSION_CRF))
    return changes


class DemoClip:
    """The model in `folder` as open_clip builds and loads it, and its aesthetic head."""

    def __init__(self, folder: Path = FOLDER) -> None:
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        self._model = open_clip.CLIP(**config["model_cfg"]).eval()
        open_clip.load_checkpoint(self._model, str(folder / "open_clip_model.safetensors"))
        size_px = config["model_cfg"]["vision_cfg"]["image_size"]
        self._preprocess = image_transform_v2(PreprocessCfg(size=size_px, **config["preprocess_cfg"]), is_train=False)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=config["model_cfg"]["text_cfg"]["context_length"])
        self._head = load_file(folder / "aesthetic.safetensors")

    @torch.inference_mode()
    def embed_images(self, clips: Sequence[Sequence[bytes]]) -> Floats:
        """(N, 3, D) normalised embeddings of three JPEG pictures each."""
        images = [Image.open(io.BytesIO(content)).convert("RGB") for pictures in clips for content in pictures]
        tensors = torch.stack([self._preprocess(image) for image in images])
        flat = torch.cat([self._model.encode_image(part, normalize=True) for part in tensors.split(64)])
        return flat.unflatten(0, (len(clips), 3)).numpy()

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Floats:
        """(N, D) normalised embeddings."""
        return self._model.encode_text(self._tokenizer(list(captions)), normalize=True).numpy()

    def aesthetic(self, embeddings_N3D: Floats) -> Floats:
        """(N,) scores, the mean of the three pictures'; higher is better."""
        scores = embeddings_N3D @ self._head["weight"].numpy()[0] + self._head["bias"].numpy()[0]
        return scores.mean(axis=1)


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """Thumbnails of clips that were found in the original and in every altered copy."""

    captions: tuple[str, ...]
    originals: tuple[Pictures, ...]
    altered: Mapping[str, tuple[Pictures, ...]]


def scanned(path: Path, truth: Truth) -> dict[int, Pictures]:
    """Shot number -> three JPEG thumbnails of the clip that a scan finds there. Shots without a clip are omitted."""
    (source,) = list_sources([str(path)])
    result = scan(source)
    begins_s = result.source["start_s"] if result.clips else 0.0
    jpegs_of_shot: dict[int, Pictures] = {}
    for clip, pictures in zip(result.clips, result.thumbnails, strict=True):
        middle_s = (clip["start_s"] + clip["end_s"]) / 2 - begins_s + truth.start_s
        for i, shot in enumerate(truth.shots):
            if shot.start_s <= middle_s < shot.end_s and clip["duration_s"] <= 1.1 * (shot.end_s - shot.start_s):
                jpegs_of_shot.setdefault(i, pictures)
    return jpegs_of_shot


def decoded(path: Path, truth: Truth) -> dict[int, Pictures]:
    """Shot number -> first, middle and last frame as JPEG, at the times in the ground truth, without a scan."""
    with path.open("rb") as file, Video(file) as video:
        frames = [picture for _, picture in upright(video, long_side_px=PICTURE_LONG_SIDE_PX)]
    jpegs_of_shot = {}
    for i, shot in enumerate(truth.shots):
        last = shot.end_frame - 1
        jpegs_of_shot[i] = tuple(stored(frames[at]) for at in (shot.start_frame, (shot.start_frame + last) // 2, last))
    return jpegs_of_shot


def held_back(
    specs: Sequence[VideoSpec],
    changes: Mapping[str, Change],
    folder: Path,
    *,
    look: Callable[[Path, Truth], dict[int, Pictures]] = scanned,
) -> HeldBack:
    """Render videos and their altered copies into `folder`, and keep the clips that `look` finds in all of them."""
    captions: list[str] = []
    originals: list[Pictures] = []
    altered: dict[str, list[Pictures]] = {name: [] for name in changes}
    for spec in specs:
        truth = render(spec, folder)
        jpegs_of_shot = {"": look(folder / truth.file, truth)}
        for name, (change, encoding) in changes.items():
            path = transcoded(folder / truth.file, folder / name, spec.name, change, encoding)
            jpegs_of_shot[name] = look(path, truth)
        everywhere = set.intersection(*(set(shots) for shots in jpegs_of_shot.values()))
        for shot in sorted(everywhere):
            captions.append(truth.shots[shot].caption)
            originals.append(jpegs_of_shot[""][shot])
            for name, clips in altered.items():
                clips.append(jpegs_of_shot[name][shot])
    return HeldBack(
        captions=tuple(captions),
        originals=tuple(originals),
        altered={name: tuple(clips) for name, clips in altered.items()},
    )


def caption_ranks(
    embeddings_N3D: Floats, texts_ND: Floats, captions: Sequence[str], seed: int = 0
) -> NDArray[np.int64]:
    """(N,) rank, from 0, of the correct caption among 16 different ones, 15 of which are of other clips."""
    rng, similarity = np.random.default_rng(seed), embeddings_N3D.mean(axis=1) @ texts_ND.T
    ranks = []
    for i, caption in enumerate(captions):
        others = {captions[j]: j for j in rng.permutation(len(captions)) if captions[j] != caption}
        rivals = list(others.values())[: _CANDIDATES - 1]
        ranks.append(int((similarity[i, rivals] >= similarity[i, i]).sum()))
    return np.array(ranks)


def clip_embeddings(embeddings_N3D: Floats) -> Floats:
    """(N, D): normalized mean of the embeddings of the three images."""
    means = embeddings_N3D.mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Effect of one cosine threshold between clip embeddings."""

    threshold: float
    copies_found: float
    pairs_apart: float
    clips_apart: float
    """Share of clips that are not mistaken for a copy of another."""


def duplicates(originals_ND: Floats, copies_KND: Floats, threshold: float) -> Duplicates:
    """Share of copies found, and of different scenes kept apart, among originals and copies."""
    cosine_KN = np.einsum("nd,knd->kn", originals_ND, copies_KND)
    other = np.stack([originals_ND @ copy.T for copy in (originals_ND, *copies_KND)])
    different = ~np.eye(len(originals_ND), dtype=bool)
    joined = (other >= threshold) & different
    return Duplicates(
        threshold=threshold,
        copies_found=float((cosine_KN >= threshold).mean()),
        pairs_apart=float(1 - joined.sum() / (different.sum() * len(other))),
        clips_apart=float(1 - joined.any(axis=2).mean()),
    )


def report(folder: Path = FOLDER, *, videos: int = 36, short_side_px: int = 180) -> None:
    """Print all figures for `videos` held-out videos."""
    model, worse = DemoClip(folder), degradations()
    specs = corpus_specs(seed=HELD_BACK_SEED, videos=videos, short_side_px=short_side_px)
    with tempfile.TemporaryDirectory() as place:
        clips = held_back(specs, {**worse, **COPIES}, Path(place))
    originals = model.embed_images(clips.originals)
    altered = {name: model.embed_images(pictures) for name, pictures in clips.altered.items()}
    ranks = caption_ranks(originals, model.embed_captions(clips.captions), clips.captions)
    print(f"{len(ranks)} clips: the right caption is first among {_CANDIDATES} in {(ranks == 0).mean():.1%}")
    good = model.aesthetic(originals)
    print(f"aesthetic of originals: {good.mean():.2f}, from {good.min():.2f} to {good.max():.2f}")
    for name in worse:
        bad = model.aesthetic(altered[name])
        print(f"  {name}: lower in {(bad < good).mean():.1%}; {bad.mean():.2f}, up to {bad.max():.2f}")
    for name in COPIES:
        cosine_N = (clip_embeddings(originals) * clip_embeddings(altered[name])).sum(axis=1)
        print(
            f"  copies, {name}: cosine {cosine_N.mean():.3f}, 1 % below {np.quantile(cosine_N, 0.01):.3f}, "
            f"least {cosine_N.min():.3f}"
        )
    copies = np.stack([clip_embeddings(altered[name]) for name in COPIES])
    for threshold in np.arange(0.76, 0.95, 0.02):
        figures = duplicates(clip_embeddings(originals), copies, float(threshold))
        print(
            f"  threshold {threshold:.2f}: {figures.copies_found:.1%} of copies found, "
            f"{figures.pairs_apart:.3%} of pairs and {figures.clips_apart:.1%} of clips apart"
        )


def main() -> None:
    """Print the figures of a model."""
    parser = argparse.ArgumentParser(prog="python -m demo.clip_check", description=report.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="model folder (default: the demo's)")
    parser.add_argument("--videos", type=int, default=36, help="number of videos to render (default: 36)")
    parser.add_argument(
        "--short-side-px", type=int, default=180, help="shorter side of the videos in pixels (default: 180)"
    )
    arguments = parser.parse_args()
    report(arguments.folder, videos=arguments.videos, short_side_px=arguments.short_side_px)


if __name__ == "__main__":
    main()
