"""Readers for kinds of input that are not covered by one command; they return an exit code.

Ray is not started for each case: the functions that run in its workers are called directly.
"""

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.hostile.originals import SETTINGS, clipmill

REJECTED = 2
_FAILED = 1
_TRIES = 3
_SAMPLES = 13
"""Number of samples in the original shards."""
UNEXPECTED = re.compile(r"unexpected \w+ in \S+\.py:\d|Traceback \(most recent call last\)|it has no row$")
"""Text of an unexpected exception in a row of a table or on stderr."""


def curate_all(case: Path, originals: Path) -> int:
    """Curate, select and shard a folder of damaged videos; prints a line of JSON per video."""
    from curation.dataset.tables import Dataset

    dataset, limits = case.with_name(f"{case.name}-dataset"), originals / "config" / "limits.yaml"
    without = ("--without", "similarity,aesthetic,text_area")
    inputs = (case, originals / "footage" / "mpeg4.mp4")
    code = _FAILED
    for _ in range(_TRIES):
        code = clipmill("curate", *inputs, "--out", dataset, "--config", limits, *without)
        if code != _FAILED:  # which says to run the same command again: Ray does not start on a busy machine
            break
    code = code or clipmill("select", dataset, "--config", originals / "config" / "everything.yaml")
    if code:
        return code
    for images in ((), ("--images",)):
        clipmill("shard", dataset, "--selection", "all", *images)
    clipmill("status", dataset)
    with Dataset(str(dataset)).connect() as connection:
        sources = connection.execute("SELECT uri, source_id, error_kind, error FROM sources").fetchall()
        captions = connection.execute(
            "SELECT source_id, c.error FROM (SELECT source_id, unnest(captions) AS c FROM sources) "
            "WHERE c.error NOT NULL"
        ).fetchall()
    failed = [
        clip for index in (dataset / "shards").glob("*/index.json") for clip in json.loads(index.read_text())["failed"]
    ]
    later = [*captions, *((clip["clip_id"][:16], f"{clip['error_kind']}: {clip['error']}") for clip in failed)]
    for uri, source_id, kind, error in sources:
        reasons = [f"{kind}: {error}"] if kind else [reason for of, reason in later if of == source_id]
        print(json.dumps({"case": Path(uri).stem, "reason": "; ".join(dict.fromkeys(reasons))}))
    return 0


def read_lists(case: Path, originals: Path) -> int:
    """Read every list and archive in the folder, as `curate` does in the driver, and the videos in archives."""
    from clipmill.errors import SourceError
    from curation.inputs.captions import read_supplied
    from curation.inputs.sources import list_sources, open_source

    codes = []
    for path in sorted(case.iterdir()):
        for source in list_sources([str(path)]):
            codes.append(REJECTED if source.error else 0)
            if source.error is None and "::" in source.uri:
                read_supplied(source, {})
                try:
                    with open_source(source.location) as file:
                        file.read()
                except SourceError:
                    codes.append(REJECTED)
    return max(codes, default=0)


def select_by_rules(case: Path, originals: Path) -> int:
    """Select by damaged rules, in a copy of the dataset."""
    dataset = case / "dataset"
    shutil.copytree(originals / "dataset", dataset)
    return clipmill("select", dataset, "--config", case / "rules.yaml", "--allow-missing")


def load_batches(case: Path, originals: Path) -> int:
    """Read an epoch of clips or latents with the trainer's loader; prints skipped samples."""
    return _load(case, "tiny-image-to-video", SETTINGS)


def load_pictures(case: Path, originals: Path) -> int:
    """Read an epoch of images."""
    changes = {**SETTINGS, "model": {}, "data": {**SETTINGS["data"], "frames": 1}}
    return _load(case, "tiny-image", changes)


def _load(case: Path, preset: str, changes: dict[str, Any]) -> int:
    from training.data import loader
    from training.stages import Stage, overlay

    left_out = _Warnings()
    logging.getLogger("clipmill.data").addHandler(left_out)
    changes = {**changes, "data": {**changes["data"], "batch_size": 1, "max_broken_share": 0.9}}
    try:
        for _ in zip(range(_SAMPLES), loader(str(case), overlay(Stage.preset(preset), changes).data), strict=False):
            continue
    except ValueError as error:  # what `train` turns into a sentence
        left_out.said.append(str(error))
    print(*left_out.said, sep="\n", file=sys.stderr)
    return REJECTED if left_out.said else 0


class _Warnings(logging.Handler):
    """Collects warnings about skipped samples and shards."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def cache_latents(case: Path, originals: Path) -> int:
    """Cache the latents of every shard, as the Ray task does."""
    from training.cache_latents import cache_shard
    from training.init_model import init_model
    from training.shard_index import index_shards
    from training.stages import Stage, overlay

    stage = overlay(Stage.preset("tiny-image-to-video"), SETTINGS)
    model = init_model(stage, originals / "model")
    try:
        shards = index_shards(str(case)).shards
    except ValueError as error:
        print(error, file=sys.stderr)
        return REJECTED
    failed = [cache_shard(shard, case / "latents", model, stage.data).failed for shard in shards]
    print(*(f"{clip.error_kind}: {clip.error}" for clips in failed for clip in clips), sep="\n")
    return REJECTED if any(failed) else 0


def load_clip(case: Path, originals: Path) -> int:
    """Load the CLIP model and the aesthetic head, as `curate` checks them before a run and workers load them."""
    from pipelines.config import CurateConfig
    from pipelines.model_specs import asked_models, load_models

    clip = {"model": str(case), "pretrained": None}
    config = {"clip_embedder": clip, "aesthetic": {"head": str(case / "head.pt")}, "without": ["text_area"]}
    load_models(asked_models(CurateConfig.from_values(config, origin="config")))
    return 0


def load_coca(case: Path, originals: Path) -> int:
    """Load the captioner CoCa, as workers do."""
    from pipelines.config import CurateConfig
    from pipelines.model_specs import asked_models, load_models

    coca = {"model": str(case), "pretrained": None, "max_tokens": 20}
    config = {"captioners": {"coca": coca}, "without": ["similarity", "aesthetic", "text_area"]}
    load_models(asked_models(CurateConfig.from_values(config, origin="config")))
    return 0
