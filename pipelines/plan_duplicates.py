"""What the search for near-duplicates will take: a run on made-up embeddings here, extrapolated by measured slopes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import rank_duplicates
from curation.dedup.ranked import CLIP_COLUMNS

_MEASURED_CLIPS = 10_000
_EXPONENTS = {"exact": 1.85, "approximate": 1.28}
"""CPU seconds grow with these powers of the number of clips (benchmarks.duplicates, docs/duplicates.md)."""
_BYTES_PER_CLIP = 3100
"""Of the process that searches, with embeddings of `_WIDTH` numbers (the same measurement)."""
_WIDTH, _SUBJECTS, _BATCH_ROWS = 768, 500, 8192


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """Of a search over some number of clips."""

    clips: int
    """That were searched here."""
    cpu_s: float
    exponent: float
    bytes_per_clip: float

    def at(self, clips: float) -> float:
        """CPU seconds for another number of clips."""
        return self.cpu_s * (clips / self.clips) ** self.exponent if self.clips else 0.0


def measure_search(clips: int, width: int, config: DuplicatesConfig) -> SearchCost:
    """Search up to 10,000 made-up clips, exactly or approximately, as a search over `clips` would be."""
    kind = "exact" if clips <= config.exact_up_to else "approximate"
    measured = min(clips, _MEASURED_CLIPS)
    here = config.replace(exact_up_to=measured if kind == "exact" else 0)
    batches = list(_made_up(measured, width))
    before_s = time.process_time()
    rank_duplicates(batches, here)
    cpu_s = time.process_time() - before_s
    return SearchCost(
        clips=measured, cpu_s=cpu_s, exponent=_EXPONENTS[kind], bytes_per_clip=_BYTES_PER_CLIP * width / _WIDTH
    )


def _made_up(clips: int, width: int) -> Iterator[pa.RecordBatch]:
    """Clips of sources of their own, whose embeddings crowd around subjects, as CLIP's do."""
    rng = np.random.default_rng(0)
    subjects_SD = rng.standard_normal((_SUBJECTS, width), np.float32)
    for start in range(0, clips, _BATCH_ROWS):
        ids = [f"{number:016x}" for number in range(start, min(start + _BATCH_ROWS, clips))]
        rows_BD = rng.standard_normal((len(ids), width), np.float32)
        rows_BD += subjects_SD[rng.integers(0, _SUBJECTS, len(ids))]
        columns = {
            "clip_id": pa.array([f"{source}-0-48" for source in ids]),
            "source_id": pa.array(ids),
            "width": pa.array(rng.choice([640, 1280, 1920], len(ids)).astype(np.int32)),
            "height": pa.array(rng.choice([360, 720, 1080], len(ids)).astype(np.int32)),
            "aesthetic": pa.array(rng.normal(5, 1, len(ids)).astype(np.float32)),
            "duration_s": pa.array(rng.uniform(1, 20, len(ids))),
            "embedding": _lists(rows_BD),
        }
        yield pa.record_batch({name: columns[name] for name in CLIP_COLUMNS})


def _lists(rows_BD: NDArray[np.float32]) -> pa.Array:
    offsets = np.arange(len(rows_BD) + 1, dtype=np.int32) * rows_BD.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows_BD.astype(np.float16).reshape(-1)))
