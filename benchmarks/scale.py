"""Cost per source for 10, 100 and 1,000 sources, and cost of a selection over ten million clips.

    python -m benchmarks.scale [--counts 10 100 1000] [--without-select]

CPU seconds include the driver, Ray and all workers. Ray and its workers are started and warmed up before the
measurement.
"""

import argparse
import os
import resource
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

from benchmarks import select_scale
from benchmarks.common import report
from clipmill import CurateConfig, curate
from footage.render import Cut, Shot, VideoSpec, render
from pipelines.cluster import connected

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_DISTINCT = 5
_CONFIG = CurateConfig(without=("aesthetic", "similarity"))


def tree_cpu_s() -> float:
    """User and system CPU seconds of this process and its descendants, including ended ones."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended just now
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS_PER_S
    total = 0.0
    for pid, cpu_s in seconds.items():
        above = pid
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        total += cpu_s if above == os.getpid() else 0.0
    return total


def footage(folder: Path, count: int) -> Path:
    """`count` videos of four shots, 16 s each; a few are rendered, the others are links to them."""
    folder.mkdir(parents=True)
    originals = folder.parent / "originals"
    if not originals.exists():
        for i in range(_DISTINCT):
            shots = tuple(Shot(camera="pan", speed_px=1.0 + i, duration_s=4.0, seed=10 * i + j) for j in range(4))
            render(VideoSpec(name=f"{i}", shots=shots, cuts=(Cut(kind="hard"),) * 3, fps=Fraction(24)), originals)
    for i in range(count):
        (folder / f"{i:05d}.mp4").hardlink_to(originals / f"{i % _DISTINCT}.mp4")
    return folder


def cost_per_source(counts: list[int], work: Path) -> dict[int, tuple[float, float, float]]:
    """count -> (CPU seconds per source, wall seconds per source, peak memory of the driver in MiB)."""
    costs = {}
    with connected():
        curate([str(footage(work / "warm", 8))], str(work / "warm-out"), config=_CONFIG, quiet=True)
        for count in counts:
            videos, before = footage(work / f"in-{count}", count), tree_cpu_s()
            result = curate([str(videos)], str(work / f"out-{count}"), config=_CONFIG, quiet=True)
            assert result.status.sources_ok == count
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            costs[count] = (tree_cpu_s() - before) / count, result.wall_s / count, peak_mib
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--without-select", action="store_true", help="skip the selection over ten million clips")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="clipmill-scale-"))
    try:
        costs = cost_per_source(arguments.counts, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    rows = [(f"curate, {n} sources", *costs[n]) for n in arguments.counts]
    figures: dict[str, object] = {"cost_per_source": {str(n): round(cpu, 3) for n, (cpu, _, _) in costs.items()}}
    figures["driver_peak_mib"] = {str(n): round(peak) for n, (_, _, peak) in costs.items()}
    if not arguments.without_select:
        figures |= select_scale.measure()
    report("cost per source", ("", "CPU s / source", "wall s / source", "driver peak MiB"), rows, figures)


if __name__ == "__main__":
    main()
