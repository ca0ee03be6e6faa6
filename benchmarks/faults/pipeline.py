"""The pipeline under test: sixty rendered sources, half on disk and half in a store, up to cached latents."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec
import yaml

from benchmarks.faults.endpoint import FaultyEndpoint
from benchmarks.faults.network import FaultyStore
from benchmarks.faults.processes import MARK
from benchmarks.hostile import originals
from curation.dataset.tables import Dataset
from tests.media import panning, write_video

SOURCES = 60
_BUCKET = "faults"
_SCORER = f"{Path(__file__).parents[2] / 'tests' / 'pipelines' / 'scorers.py'}:SlowLuma"
_RULES = {"name": "all", "rules": {"motion": {"drop_lowest": "10%"}}}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A command, and a check of whether all its outputs exist."""

    name: str
    arguments: tuple[str, ...]
    done: Callable[[], bool]


class Pipeline:
    """Inputs, models and settings in `work`, created once; outputs go to a given folder."""

    def __init__(self, work: Path, store: FaultyStore, endpoint: FaultyEndpoint, *, sources: int = SOURCES) -> None:
        self.work, self._store, self._sources = work, store, sources
        self._on_disk = work / "videos"
        self._originals = originals.make(work / "originals", ["model"])
        self._rules = work / "rules.yaml"
        self._rules.write_text(yaml.safe_dump(_RULES))
        self._captions = work / "captions.yaml"
        self._captions.write_text(yaml.safe_dump({"captioners": {"video": endpoint.config()}}))
        self._write_inputs()

    def phases(self, out: Path) -> list[Phase]:
        """Curate, score, caption, select, shard and cache, in this order, into OUT/dataset and OUT/latents."""
        dataset, latents = out / "dataset", out / "latents"
        shards = dataset / "shards" / "all"
        stage = ("--stage", "tiny-image-to-video", "--init", str(self._originals / "model"), *originals.settings())
        without = ("--without", "similarity,aesthetic", "--retry-rejected")
        return [
            Phase(
                name="curate",
                arguments=("curate", str(self._on_disk), f"s3://{_BUCKET}/videos", "--out", str(dataset), *without),
                done=lambda: self._all_curated(dataset),
            ),
            Phase(
                name="score",
                arguments=("score", str(dataset), "--scorer", _SCORER),
                done=lambda: _is_finished(dataset / "scores" / "slow_luma"),
            ),
            Phase(
                name="caption",
                arguments=(
                    *("caption", str(dataset), "--captioner", "video", "--config", str(self._captions)),
                    "--retry-failed",
                ),
                done=lambda: _is_finished(dataset / "captions" / "video") and not _failed_captions(dataset),
            ),
            Phase(
                name="select",
                arguments=("select", str(dataset), "--config", str(self._rules)),
                done=(dataset / "selections" / "all.json").is_file,
            ),
            Phase(
                name="shard",
                arguments=("shard", str(dataset), "--selection", "all", "--clips-per-shard", "6"),
                done=lambda: not _read(shards / "index.json").get("failed", True),
            ),
            Phase(
                name="cache",
                arguments=("cache-latents", "--data", str(shards), "--out", str(latents), *stage),
                done=lambda: not _read(latents / "index.json").get("failed", True),
            ),
        ]

    def start(self, phase: Phase, run: str, log: Path) -> subprocess.Popen[bytes]:
        """Start the command of a phase; its output is appended to `log`."""
        environment = os.environ | self._credentials() | {MARK: run}
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", *phase.arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
            )  # fmt: skip

    def _all_curated(self, dataset: Path) -> bool:
        statuses = Dataset(str(dataset)).statuses() if (dataset / "dataset.json").is_file() else {}
        return list(statuses.values()).count("ok") == self._sources

    def _credentials(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self._store.endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip

    def _write_inputs(self) -> None:
        """Reuse existing files; the store is a new one in each process."""
        stored = self.work / "stored"
        for i in range(self._sources):
            folder = (self._on_disk, stored)[i % 2]
            folder.mkdir(exist_ok=True)
            if not (folder / f"{i:04d}.mp4").exists():
                frames = panning(height=72, pixels_per_frame=1 + i % 5, frames=60, seed=i)
                write_video(folder / f"{i:04d}.mp4", frames, options={"crf": "25", "preset": "ultrafast"})
        os.environ.update(self._credentials())
        store = fsspec.filesystem("s3")
        store.mkdir(_BUCKET)
        for path in sorted(stored.iterdir()):
            store.put_file(str(path), f"{_BUCKET}/videos/{path.name}")


def _is_finished(root: Path) -> bool:
    """Whether a run that wrote the first version of a score or captioner has come to its end."""
    versions = root / "versions.json"
    return '"finished": true' in (versions.read_text() if versions.is_file() else "")


def _failed_captions(dataset: Path) -> int:
    with Dataset(str(dataset)).connect() as connection:
        query = 'SELECT count(*) FROM "captions_video@1" WHERE video_error_kind IS NOT NULL'
        [(failed,)] = connection.execute(query).fetchall()
        return int(failed)


def _read(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
