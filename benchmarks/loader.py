"""CPU time of a training batch of frames, compared with plain decoding and with webdataset and decord.

    python -m benchmarks.loader [--runs N] [--samples N]
    python -m benchmarks.loader --remote [--delay-ms N]    the same clips on a web server: benchmarks/loader_remote.py

Clips are 3 s of real footage, H.264 with a keyframe every second as the shard writer encodes them; of each, 14 frames
at one of three rates, resized to 320 x 576. CPU seconds of one process and one thread, in turn. The loader can be
faster than plain decoding, since it skips non-reference frames that it does not need. Then a tiny stage trains on the
clips, to measure how long a step waits for its data.
"""

import argparse
import io
import itertools
import json
import random
import tarfile
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np
import torch
import webdataset

from benchmarks.common import interleaved, real_videos, report
from benchmarks.loader_remote import compare
from clipmill.video_writer import Encoding, write_video
from svd.config import UNetConfig
from svd.model import Model, ModelConfig
from training.data import loader
from training.data_config import DataConfig
from training.distributed import join, leave
from training.frame_choice import choose_frames
from training.loop import run_loop
from training.order import Order
from training.seeds import seed_of
from training.shard_index import index_shards
from training.stages import Stage, overlay

SOURCES = ("v2d_test", "psd_testvideo", "cc_test_video_30s", "dj_video1", "dj_video3")
CLIP_S = 3.0
CONFIG = DataConfig(frames=14, height_px=320, width_px=576, fps=(6.0, 8.0, 12.0), batch_size=4, workers=0)


def write_shards(folder: Path, clips: int) -> None:
    """Write clips from all of the real footage to shards of ten."""
    paths = (path for name in SOURCES for path in sorted(real_videos().glob(f"{name}.*")) if path.suffix != ".json")
    streams = [pieces(path) for path in paths]
    chosen = itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=False)), clips)
    for number, batch in enumerate(_tens(chosen)):
        with tarfile.open(folder / f"clips-{number:06d}.tar", "w") as tar:
            for key, content in batch:
                metadata = {
                    "captions": [{"source": "benchmark", "text": "a clip"}],
                    "conditioning": {"motion_bucket": 127},
                }
                for extension, data in (("mp4", content), ("json", json.dumps(metadata).encode())):
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def _tens(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, 10)):
        yield batch


def pieces(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (key, MP4) of each clip."""
    with av.open(str(path)) as container, tempfile.TemporaryDirectory() as folder:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 25)
        frames = container.decode(stream)
        for number in itertools.count():
            pictures = [f.to_ndarray(format="bgr24") for f in itertools.islice(frames, round(CLIP_S * rate))]
            if len(pictures) < CLIP_S * rate * 0.99:
                return
            height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
            target = Path(folder) / f"{number}.mp4"
            write_video(
                target,
                (np.ascontiguousarray(picture[:height, :width]) for picture in pictures),
                range(len(pictures)),
                time_base=1 / rate,
                fps=rate,
                width=width,
                height=height,
                encoding=Encoding(crf=18),
            )
            yield f"{path.stem}-{number}", target.read_bytes()


def read_ours(shards: Path, samples: int) -> None:
    for _ in itertools.islice(iter(loader(shards, CONFIG)), samples // CONFIG.batch_size):
        pass


def decode_alone(shards: Path, samples: int) -> None:
    """Decode from the keyframe before the first selected frame to the last one, without processing the frames."""
    index = index_shards(shards)
    order = Order([len(shard) for shard in index.shards], seed=CONFIG.seed)
    for position in range(samples):
        epoch, number, row = order.at(position)
        shard = index.shards[number]
        rng = random.Random(seed_of(CONFIG.seed, epoch, shard.key(row)))
        with av.open(io.BytesIO(shard.read(row)["mp4"])) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.size]
            shown = sorted(packet.pts for packet in packets)
            times_s = [pts * float(stream.time_base) for pts in shown]
            choice = choose_frames(times_s, lengths=(CONFIG.frames,), rates=CONFIG.fps, rng=rng)
            assert choice is not None, "clips are long enough"
            first, last = shown[choice.frame_indices[0]], shown[choice.frame_indices[-1]]
            start = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= first)
            end = max(i for i, packet in enumerate(packets) if packet.pts <= last)
            for packet in (*packets[start : end + 1], None):
                stream.codec_context.decode(packet)


def read_webdataset_decord(shards: Path, samples: int) -> None:
    """The usual loop: samples from webdataset, frames at one of the rates from decord, resize with OpenCV."""
    rng = random.Random(0)
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    stream = itertools.chain.from_iterable(webdataset.WebDataset(urls, shardshuffle=False) for _ in itertools.count())
    batch = []
    for sample in itertools.islice(stream, samples):
        reader = decord.VideoReader(io.BytesIO(sample["mp4"]), num_threads=1)
        step = reader.get_avg_fps() / rng.choice(CONFIG.fps)
        span = step * (CONFIG.frames - 1)
        start = rng.uniform(0, max(0.0, len(reader) - 1 - span))
        wanted = [min(len(reader) - 1, round(start + i * step)) for i in range(CONFIG.frames)]
        frames = reader.get_batch(wanted).asnumpy()
        scale = max(CONFIG.height_px / frames.shape[1], CONFIG.width_px / frames.shape[2])
        height, width = round(frames.shape[1] * scale), round(frames.shape[2] * scale)
        top, left = (height - CONFIG.height_px) // 2, (width - CONFIG.width_px) // 2
        resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
        cut = [frame[top : top + CONFIG.height_px, left : left + CONFIG.width_px] for frame in resized]
        batch.append(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2))
        if len(batch) == CONFIG.batch_size:
            torch.stack(batch)
            batch.clear()


def waiting(shards: Path, out: Path) -> float:
    """Share of a step at tiny size that the loop waits for data, with one prefetching worker."""
    stage = overlay(
        Stage.preset("tiny-image-to-video"),
        {"run": {"steps": 30, "log_every": 10, "save_every": 1000, "sample_every": None}, "data": {"batch_size": 4}},
    )
    shapes = ModelConfig.tiny(UNetConfig.preset(stage.model.unet, **stage.model.overrides), width_px=96, height_px=64)
    process = join("cpu")
    run_loop(stage, Model.build(shapes), loader(shards, stage.data), out, process)  # type: ignore[arg-type]
    leave()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    return sum(record["data_wait_s"] for record in records) / sum(record["step_s"] for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each loader; the median is reported")
    parser.add_argument("--samples", type=int, default=60, help="samples per run")
    parser.add_argument("--remote", action="store_true", help="compare a web server with the local disk instead")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="wait of the server before each answer")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        write_shards(shards, 40)
        if arguments.remote:
            compare(shards, CONFIG, runs=arguments.runs, samples=arguments.samples, delay_ms=arguments.delay_ms)
            return
        seconds = interleaved(
            arguments.runs,
            limit=lambda: decode_alone(shards, arguments.samples),
            ours=lambda: read_ours(shards, arguments.samples),
            webdataset=lambda: read_webdataset_decord(shards, arguments.samples),
        )
        share = waiting(shards, Path(folder) / "run")
    rate = {name: arguments.samples / value for name, value in seconds.items()}
    figures = {
        "of_decode_limit": round(rate["ours"] / rate["limit"], 3),
        "vs_webdataset_decord": round(rate["ours"] / rate["webdataset"], 3),
        "data_wait_share": round(share, 4),
    }
    rows = [
        ("decoding of the same frames alone", rate["limit"], 1.0),
        ("clipmill's loader", rate["ours"], rate["ours"] / rate["limit"]),
        ("webdataset, decord, OpenCV", rate["webdataset"], rate["webdataset"] / rate["limit"]),
        ("step of tiny-image-to-video spent waiting", None, share),
    ]
    report("samples per CPU second, 14 frames of 320 x 576", ("", "samples / CPU s", "share"), rows, figures)


if __name__ == "__main__":
    main()
