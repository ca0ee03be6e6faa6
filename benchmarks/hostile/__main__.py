"""Run thousands of damaged inputs through the commands that read them: no traceback, no hang, no excessive memory.

    python -m benchmarks.hostile [--count 5000] [--seed S] [--kind K]

Inputs and output of failures are kept under WORK/failures; --case N reruns one and prints its output. The same seed
gives the same cases.
"""

import argparse
import os
import tempfile
from collections import Counter
from itertools import count, islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of a pool do not survive the fork of each case

from benchmarks.common import report
from benchmarks.hostile import originals, runner
from benchmarks.hostile.kinds import KINDS, kind_of


def run(chosen: list[int], *, seed: int, work: Path, limits: runner.Limits) -> list[runner.Verdict]:
    """Run cases, printing each failure as it is found."""
    needed = {name for case in chosen for name in (KINDS[kind_of(case)].original, *KINDS[kind_of(case)].needs)}
    inputs = originals.make(work / "originals", sorted(needed))
    _import_everything()
    verdicts = []
    for verdict in runner.run_cases(chosen, seed, inputs, work, limits):
        verdicts.append(verdict)
        if verdict.outcome not in ("ok", "rejected"):
            print(
                f"{verdict.outcome}: case {verdict.case} ({verdict.kind}, {verdict.damaged}): {verdict.detail}",
                flush=True,
            )
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS), help="run only cases of this kind")
    parser.add_argument("--case", type=int, help="run only this case and show its output")
    parser.add_argument("--cpu-s", type=float, default=60.0, help="CPU time limit; a case over it counts as a hang")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory limit; a case over it counts as over")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), f"clipmill-hostile-{os.getuid()}"))
    arguments = parser.parse_args()
    if arguments.case is not None:
        chosen = [arguments.case]
    else:
        wanted = (case for case in count() if arguments.kind in (None, kind_of(case)))
        chosen = list(islice(wanted, arguments.count))
    limits = runner.Limits(cpu_s=arguments.cpu_s, memory_bytes=arguments.memory_mib << 20)
    verdicts = run(chosen, seed=arguments.seed, work=arguments.work, limits=limits)
    if arguments.case is not None:
        for log in sorted((arguments.work / "failures").glob(f"{arguments.case:06d}-logs/*")):
            print(f"--- {log}", log.read_text(errors="replace"), sep="\n")
    _report(verdicts, arguments.seed)


def _report(verdicts: list[runner.Verdict], seed: int) -> None:
    by_kind = {kind: Counter(v.outcome for v in verdicts if v.kind == kind) for kind in KINDS}
    rows = [(kind, counts.total(), *(counts[o] for o in runner.OUTCOMES)) for kind, counts in by_kind.items() if counts]
    total = Counter(verdict.outcome for verdict in verdicts)
    figures = {
        "count": len(verdicts),
        "ok": total["ok"],
        "rejected": total["rejected"],
        "tracebacks": total["traceback"],
    }
    figures |= {"hangs": total["hang"], "over": total["over"]}
    report(f"hostile corpus, seed {seed}", ("kind", "cases", *runner.OUTCOMES), rows, figures)


def _import_everything() -> None:
    """Import everything that commands import when they run, once before forking."""
    import cv2
    import duckdb  # noqa: F401
    import open_clip  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.utils.tensorboard

    import pipelines.cache_latents
    import pipelines.cli
    import pipelines.curate
    import pipelines.sample
    import pipelines.shard
    import pipelines.train  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


if __name__ == "__main__":
    main()
