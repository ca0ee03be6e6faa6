"""Folders of inputs for the pipeline tests, and what to compare between two datasets."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from curation.dataset.tables import Dataset
from footage.render import corpus
from pipelines.config import CurateConfig
from tests.media import panning, write_video

WITHOUT_CLIP = CurateConfig(without=("aesthetic", "similarity"))
"""For tests that are not about the scores of the CLIP model: its default weights are not to be had offline."""

WITHOUT_CLIP_OPTION = ("--without", "similarity,aesthetic")


def many_small(folder: Path, count: int) -> Path:
    """`count` short videos, each of another texture at one of five speeds."""
    folder.mkdir(parents=True)
    for i in range(count):
        frames = panning(height=90, pixels_per_frame=1 + i % 5, frames=60, seed=i)
        write_video(folder / f"{i:04d}.mp4", frames, options={"crf": "25", "preset": "ultrafast"})
    return folder


def good_and_bad(folder: Path) -> dict[str, str | None]:
    """Write good videos among bad inputs; file name -> expected error_kind, None for a usable one."""
    truths = corpus(folder, videos=3, seed=5)
    expected: dict[str, str | None] = {truth.file: None for truth in truths}
    good = folder / truths[0].file
    shutil.copy(good, folder / 'it\'s a "name"\nwith 100% & everything;.mp4')
    expected['it\'s a "name"\nwith 100% & everything;.mp4'] = None
    files = {
        "zero.mp4": (b"", "empty"),
        "text.mp4": (b"once upon a time\n" * 99, "not_video"),
        "playlist.mp4": (f"#EXTM3U\n#EXTINF:9,\n{good}\n#EXT-X-ENDLIST\n".encode(), "unsupported_container"),
        "concat.mp4": (f"ffconcat version 1.0\nfile {good}\n".encode(), "unsupported_container"),
        "headless.mp4": (good.read_bytes()[: good.stat().st_size // 2], "decode_error"),
    }
    for name, (content, kind) in files.items():
        (folder / name).write_bytes(content)
        expected[name] = kind
    (folder / "folder.mp4").mkdir()
    expected["folder.mp4"] = "unreadable"
    return expected


def content(dataset: str) -> dict[str, Any]:
    """What a dataset holds, without what may differ between two runs (timings, part names)."""
    with Dataset(dataset).connect() as connection:
        timings = "scan_cpu_s, scan_parts_cpu_s, score_cpu_s"
        sources = connection.execute(f"SELECT * EXCLUDE ({timings}) FROM sources ORDER BY uri").fetchall()
        clips = connection.execute("SELECT * FROM clips ORDER BY clip_id").fetchall()
    return {"sources": sources, "clips": clips}


def shard_content(folder: Path) -> dict[str, str]:
    """Name of every sample file in every shard -> sha256 of its bytes."""
    digests: dict[str, str] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in digests, "a sample twice"
                digests[member.name] = hashlib.sha256(file.read()).hexdigest()
    index = json.loads((folder / "index.json").read_text())
    assert index["totals"]["samples"] == len({name.partition(".")[0] for name in digests})
    return digests
