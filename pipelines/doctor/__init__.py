"""`clipmill doctor`: check what a run needs on every node before starting it."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipmill import storage
from clipmill.atomic import temporary_name
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from pipelines.cluster import connected
from pipelines.config import CurateConfig
from pipelines.doctor.checks import LEVELS, Finding, Node, findings
from pipelines.doctor.facts import Facts, Question, gather, python_and_versions, remove_marker, write_marker
from pipelines.machine import usable_cpus
from pipelines.progress import Reporter

__all__ = ["Finding", "doctor"]

_TIMEOUT_S = 600.0
"""For all nodes together; loading models takes most of it."""


def doctor(
    config: CurateConfig | None = None, *, address: str | None = None, out: str | None = None, quiet: bool = False
) -> list[Finding]:
    """Check what `curate` with these arguments needs, on every node that it would use.

    These are the nodes with CPUs of the Ray cluster at `address` (or RAY_ADDRESS), or this machine. Nothing is changed:
    files written into `out` are removed. Returns findings, problems first; raises nothing for a problem.
    """
    config = config or CurateConfig()
    remote = bool(address or os.environ.get("RAY_ADDRESS"))
    question, listed = Question(config=config), list[Finding]()
    with Reporter("doctor", unit="nodes", quiet=quiet) as report, ExitStack() as stack:
        if out is not None:
            try:
                url, marker = stack.enter_context(_marked(out))
                question = replace(question, out=url, marker=marker)
            except UserError as error:
                listed.append(Finding(check="output", level="problem", found=str(error)))
        report.connecting(address)
        try:
            with connected(address):
                report.waiting("checking the nodes")
                nodes, failed = _ask_nodes(question)
            listed += [_connection(nodes, failed, remote=remote), *failed]
        except UserError as error:
            listed.append(Finding(check="Ray", level="problem", found=str(error)))
            nodes = [] if remote else [Node(name="this machine", facts=gather(question), ray_cpus=usable_cpus())]
        driver = python_and_versions() if remote and nodes else None
        listed += findings(nodes, config, driver=driver, out=question.out)
    return sorted(listed, key=lambda finding: LEVELS.index(finding.level))


def _connection(nodes: list[Node], failed: list[Finding], *, remote: bool) -> Finding:
    total = len(nodes) + len(failed)
    resources = f"{sum(node.ray_cpus for node in nodes):g} CPUs, {sum(node.ray_gpus for node in nodes):g} GPUs"
    where = f"connected: {total} node{'s' * (total != 1)}" if remote else "starts on this machine"
    return Finding(check="Ray", level="ok", found=f"{where}, {resources}")


def _ask_nodes(question: Question) -> tuple[list[Node], list[Finding]]:
    """The nodes that answered, and a finding for each of the others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    ask = ray.remote(num_cpus=0, max_retries=0)(gather)
    started_s = time.time()
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(question)
        for node in alive
    ]
    nodes, failed = [], []
    for node, name, answer in zip(alive, _names(alive), answers, strict=True):
        try:
            facts: Facts = ray.get(answer, timeout=max(0.0, started_s + _TIMEOUT_S - time.time()))
        except ray.exceptions.GetTimeoutError:
            failed.append(Finding(check="node", level="problem", found=f"no answer within {_TIMEOUT_S:g} s", node=name))
        except ray.exceptions.RayError as error:
            failed.append(_failed(name, error))
        else:
            offset_s = facts.clock_s - min(max(facts.clock_s, started_s), time.time())
            resources = node["Resources"]
            nodes.append(
                Node(
                    name=name,
                    facts=facts,
                    ray_cpus=resources["CPU"],
                    ray_gpus=resources.get("GPU", 0),
                    clock_offset_s=offset_s,
                )
            )
    return nodes, failed


def _failed(name: str, error: Exception) -> Finding:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return Finding(
        check="node",
        level="problem",
        found=lines[-1] if lines else type(error).__name__,
        node=name,
        advice="install the same release of clipmill there, in the Python that started Ray",
    )


def _names(nodes: list[dict[str, Any]]) -> list[str]:
    """Addresses, with the beginning of the node's id where several share one."""
    counts = Counter(node["NodeManagerAddress"] for node in nodes)
    return [
        address if counts[address := str(node["NodeManagerAddress"])] == 1 else f"{address} {node['NodeID'][:8]}"
        for node in nodes
    ]


@contextmanager
def _marked(out: str) -> Iterator[tuple[str, str]]:
    """Write a file into the dataset folder, for nodes to find; yields the folder's address and the file's name.

    Removes it and the folders created for it. Raises UserError if the folder cannot be used.
    """
    dataset = Dataset(out)
    dataset.exists()  # raises for another format
    url = storage.address(dataset.fs, dataset.path)
    created = _missing_folders(Path(dataset.path)) if storage.is_local(dataset.fs) else []
    marker = temporary_name(f"doctor-{uuid.uuid4().hex[:8]}")
    try:
        write_marker(url, marker)
        yield url, marker
    finally:
        with suppress(UserError):
            remove_marker(url, marker)
        with suppress(OSError):  # not created, or no longer empty
            for folder in created:
                folder.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]
