"""Training data of `benchmarks.curation_pays`, everything or the selection, and the held-out good clips."""

import io
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from clipmill import curate, select, shard
from curation.shards.write import ShardConfig
from demo.model import demo_config
from demo.small import small_frames
from demo.train import HELD_BACK_SEED
from footage.corpus import corpus_specs

PROMPTED_FPS = 4.0
WINDOW_S = 2.0
_PER_SHARD = 40
_RULES = Path(__file__).resolve().parents[1] / "pipelines" / "demo" / "rules" / "pretraining.yaml"


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """Held-out good clips in two halves, (N, T, H, W, 3) RGB: the first gives prompts, distances are to the second."""

    frames: NDArray[np.uint8]
    captions: list[str]
    other_frames: NDArray[np.uint8]
    other_captions: list[str]


def held_back(count: int) -> HeldBack:
    """Moving shots without text, from corpora that are not used for training."""
    shots = list(itertools.islice(_good_shots(), 2 * count))
    frames, captions = np.stack([frames for frames, _ in shots]), [caption for _, caption in shots]
    return HeldBack(
        frames=frames[::2], captions=captions[::2], other_frames=frames[1::2], other_captions=captions[1::2]
    )


def _good_shots() -> Iterator[tuple[NDArray[np.uint8], str]]:
    for seed in itertools.count(HELD_BACK_SEED + 1):
        for spec in corpus_specs(seed=seed, videos=3):
            for shot in spec.shots:
                if shot.text is None and not shot.still and shot.flash_at_s is None and shot.duration_s >= WINDOW_S:
                    yield small_frames(spec, shot, rate_fps=PROMPTED_FPS)[..., ::-1], shot.caption


def write_everything(footage: Path, folder: Path) -> None:
    """Write all readable footage as shards: pieces of two seconds, each with the caption of its middle."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = itertools.chain.from_iterable(
        _pieces(path) for path in sorted(footage.iterdir()) if path.suffix not in (".json", "")
    )
    for number in itertools.count():
        chosen = list(itertools.islice(pieces, _PER_SHARD))
        if not chosen:
            return
        with TarWriter(str(folder / f"clips-{number:06d}.tar"), encoder=False, mtime=0) as tar:
            for sample in chosen:
                tar.write(sample)


def _pieces(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of one video; for a damaged file, those up to the damage."""
    sidecar = path.with_suffix(".json")
    entries = json.loads(sidecar.read_text())["captions"] if sidecar.exists() else []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or 25)
            length = round(WINDOW_S * rate)
            frames = container.decode(stream)
            for number in itertools.count():
                pictures = [_upright(frame) for frame in itertools.islice(frames, length)]
                if len(pictures) < length:
                    return
                middle_s = (number + 0.5) * WINDOW_S
                text = next((e["text"] for e in entries if e["start_s"] <= middle_s < e["end_s"]), None)
                if text is None and entries:
                    text = min(entries, key=lambda e: abs(e["start_s"] + e["end_s"] - 2 * middle_s))["text"]
                metadata = {"captions": [{"source": "sidecar", "text": text}], "conditioning": {}}
                yield {
                    "__key__": f"{path.name.replace('.', '-')}-{number:03d}",
                    "mp4": _mp4(pictures, rate),
                    "json": json.dumps(metadata).encode(),
                }
    except av.FFmpegError:
        return


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    picture = frame.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


def _mp4(pictures: list[NDArray[np.uint8]], rate: Fraction) -> bytes:
    file = io.BytesIO()
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    with av.open(file, "w", format="mp4") as mp4:
        stream = mp4.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for picture in pictures:
            mp4.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), "bgr24")))
        mp4.mux(stream.encode(None))
    return file.getvalue()


def write_selected(footage: Path, folder: Path) -> None:
    """Write the clips that curation and the demo's rules for pretraining select from the same footage as shards."""
    dataset = folder.parent / "dataset"
    curate([str(footage)], str(dataset), config=demo_config())
    selection = select(str(dataset), str(_RULES))
    run = shard(str(dataset), selection.name, config=ShardConfig(clips_per_shard=_PER_SHARD))
    shutil.copytree(run.folder, folder, dirs_exist_ok=True)
