"""The demo's collection: rendered footage with caption sidecars and the flaws of real collections.

Some captions are wrong, some videos are re-uploads, some are degraded, two files are broken. FLAWS_FILE lists the
flaws.
"""

import json
import multiprocessing
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from clipmill.video_writer import Encoding
from footage.altered import Copy, copied, degraded, transcoded
from footage.corpus import corpus_specs
from footage.render import render
from footage.truth import Truth

FLAWS_FILE = "flaws.truth.json"
_COPIES = (
    (Copy(scale=0.5), Encoding(crf=28)),
    (Copy(crop=(0.05, 0.0, 0.0, 0.05), logo_color="white"), Encoding(codec="vp9", crf=30)),
)
_DAMAGE = ("blur", "noise", "low contrast")
_STRENGTH = 0.6
_EVERY_WRONG = 5
"""In good videos, every n-th shot gets the caption of another shot."""


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """Flaws of a collection, by file name."""

    wrong_captions: dict[str, list[int]] = field(default_factory=dict)
    """File -> numbers of the shots with the caption of another shot."""
    copies: dict[str, str] = field(default_factory=dict)
    """Re-upload -> original."""
    degraded: dict[str, str] = field(default_factory=dict)
    """File -> kind of degradation."""
    broken: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> "Flaws":
        """Read the file that `collection` wrote."""
        values = json.loads((folder / FLAWS_FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "broken": tuple(values["broken"])})


def collection(folder: Path, *, videos: int = 12, seed: int = 0) -> Flaws:
    """Write `videos` good videos and the flawed ones into `folder`, each with captions in NAME.json."""
    specs = corpus_specs(seed=seed, videos=videos + len(_DAMAGE))
    with multiprocessing.get_context("spawn").Pool(min(videos, os.cpu_count() or 1)) as pool:
        truths = pool.map(partial(render, folder=folder), specs[:videos], chunksize=1)
    wrong = _write_captions(folder, truths)
    copies = {}
    for i, (copy, encoding) in enumerate(_COPIES):
        original = truths[i * 3 % videos]
        path = transcoded(folder / original.file, folder, f"reupload-{i}", partial(copied, copy=copy), encoding)
        _describe(path, original, _captions_of(folder, original))
        copies[path.name] = original.file
    bad = {}
    with tempfile.TemporaryDirectory() as elsewhere:
        for spec, kind in zip(specs[videos:], _DAMAGE, strict=True):
            truth = render(spec, Path(elsewhere))
            change = partial(degraded, kind=kind, strength=_STRENGTH, rng=np.random.default_rng(seed))
            name = f"{spec.name}-{kind.replace(' ', '-')}"
            path = transcoded(Path(elsewhere, truth.file), folder, name, change)
            _describe(path, truth, [shot.caption for shot in truth.shots])
            bad[path.name] = kind
    flaws = Flaws(wrong_captions=wrong, copies=copies, degraded=bad, broken=_break_two(folder, truths[0].file))
    (folder / FLAWS_FILE).write_text(json.dumps(asdict(flaws), indent=1) + "\n", encoding="utf-8")
    return flaws


def _write_captions(folder: Path, truths: list[Truth]) -> dict[str, list[int]]:
    """Write a sidecar per video; returns the shots that got the caption of another shot."""
    shots = [(truth, shot) for truth in truths for shot in range(len(truth.shots))]
    captions = {(truth.file, shot): truth.shots[shot].caption for truth, shot in shots}
    wrong: dict[str, list[int]] = {}
    for i, (truth, shot) in enumerate(shots):
        if i % _EVERY_WRONG == _EVERY_WRONG - 1:
            words = set(truth.shots[shot].caption.split())
            other, other_shot = min(shots, key=lambda place: len(words & set(place[0].shots[place[1]].caption.split())))
            captions[truth.file, shot] = other.shots[other_shot].caption
            wrong.setdefault(truth.file, []).append(shot)
    for truth in truths:
        _write_sidecar(folder / truth.file, truth, [captions[truth.file, shot] for shot in range(len(truth.shots))])
    return wrong


def _captions_of(folder: Path, truth: Truth) -> list[str]:
    content = json.loads((folder / truth.file).with_suffix(".json").read_text(encoding="utf-8"))
    return [entry["text"] for entry in content["captions"]]


def _describe(path: Path, truth: Truth, captions: list[str]) -> None:
    """Ground truth and sidecar of an altered video: its shots are those of its original."""
    replace(truth, file=path.name).save(path.with_suffix(".truth.json"))
    _write_sidecar(path, truth, captions)


def _write_sidecar(path: Path, truth: Truth, captions: list[str]) -> None:
    entries = [
        {"text": text, "start_s": round(shot.start_s - truth.start_s, 3), "end_s": round(shot.end_s - truth.start_s, 3)}
        for shot, text in zip(truth.shots, captions, strict=True)
    ]
    path.with_suffix(".json").write_text(json.dumps({"captions": entries}, indent=1) + "\n", encoding="utf-8")


def _break_two(folder: Path, whole: str) -> tuple[str, str]:
    """Write a file that is not a video, and a truncated download."""
    (folder / "not-a-video.mp4").write_text("This is a text file with a hopeful name.\n")
    content = (folder / whole).read_bytes()
    (folder / "cut-short.mp4").write_bytes(content[: len(content) // 2])
    return "not-a-video.mp4", "cut-short.mp4"
