"""Checks of the machines of a run: pure functions from facts to findings.

A problem stops a run or spoils its results; a warning slows it down, or stops it under load.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.config import CurateConfig
from pipelines.doctor.facts import Facts
from pipelines.local_ray import least_open_files
from pipelines.scoring import clip_stages

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "ok")

_LEAST_TEMPORARY_BYTES = 64 << 20
_LEAST_SHARED_BYTES = 256 << 20
_MEMORY_PER_CPU_BYTES = 1 << 30
_LEAST_OUT_BYTES = 1 << 30
_CLOCK_S = 30.0
"""A heartbeat expires after two minutes."""
_DECISIVE = ("clipmill", "python", "ray")
"""Nodes with different versions of these do not work together; different versions of others give different results."""
_SHOWN = ("clipmill", "python", "ray", "av", "torch")
_SAME = "install the same release of clipmill with constraints.txt on every node"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check on one node."""

    check: str
    level: Level
    found: str
    node: str = ""
    """Empty if it concerns all nodes."""
    advice: str = ""
    """What to do about a warning or a problem."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster: its facts, and what Ray schedules on it."""

    name: str
    facts: Facts
    ray_cpus: float
    ray_gpus: float = 0
    clock_offset_s: float = 0.0
    """How far its clock is ahead of the driver's."""


def findings(
    nodes: Sequence[Node], config: CurateConfig, *, driver: Facts | None = None, out: str | None = None
) -> list[Finding]:
    """All findings; one that is the same on all nodes is listed once, without a node.

    `driver`: Python and versions of the machine that starts the run, if that is not one of the nodes.
    """
    listed = [*versions({"the driver": driver} if driver else {}, nodes), *digests(nodes)]
    for check in _PER_NODE:
        listed += _united([replace(f, node=node.name) for node in nodes for f in check(node, config)], len(nodes))
    if out is not None:
        listed += _united([replace(output(node, out), node=node.name) for node in nodes], len(nodes))
    return listed


def _united(listed: Sequence[Finding], nodes: int) -> Iterator[Finding]:
    alike: dict[Finding, list[Finding]] = {}
    for finding in listed:
        alike.setdefault(replace(finding, node=""), []).append(finding)
    for common, those in alike.items():
        yield from [common] if len(those) == nodes else those


def versions(others: Mapping[str, Facts], nodes: Sequence[Node]) -> Iterator[Finding]:
    """Python, clipmill and its requirements: installed, and in the same version, on all nodes and `others`."""
    machines = {**others, **{node.name: node.facts for node in nodes}}
    of_nodes = {name: {"python": facts.python, **facts.versions} for name, facts in machines.items()}
    names = list(dict.fromkeys(name for those in of_nodes.values() for name in those))
    differing = False
    for name in names:
        values = {node: those.get(name, "not installed") for node, those in of_nodes.items()}
        if len(set(values.values())) == 1:
            continue
        differing = True
        decisive = name in _DECISIVE or "not installed" in values.values()
        level: Level = "problem" if decisive else "warning"
        yield Finding(check=f"version of {name}", level=level, found=_by_value(values), advice=_SAME)
    if not differing and of_nodes:
        those = next(iter(of_nodes.values()))
        shown = ", ".join(f"{name} {those[name]}" for name in _SHOWN if name in those)
        yield Finding(check="versions", level="ok", found=shown + (" everywhere" if len(of_nodes) > 1 else ""))


def digests(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Weights: the same on all nodes that have them."""
    for name in dict.fromkeys(name for node in nodes for name in node.facts.model_digests):
        values = {node.name: node.facts.model_digests[name] for node in nodes if name in node.facts.model_digests}
        if len(set(values.values())) > 1:
            found, advice = f"differ: {_by_value(values)}", "copy the same file to every node"
            yield Finding(check=f"weights of {name}", level="problem", found=found, advice=advice)


def _by_value(values: Mapping[str, str]) -> str:
    """Each value with the nodes that have it: at most three by name."""
    nodes: dict[str, list[str]] = {}
    for node, value in values.items():
        nodes.setdefault(value, []).append(node)
    return ", ".join(f"{value} on {_listed(names)}" for value, names in nodes.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def imports(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """Modules with native code can be imported."""
    for name, error in node.facts.import_errors.items():
        advice = "reinstall it; a missing shared library is a system package"
        yield Finding(check=f"import {name}", level="problem", found=error, advice=advice)


def decoding(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """FFmpeg's codecs are there, and a video can be encoded and scanned in a child process."""
    facts = node.facts
    if facts.missing_codecs:
        advice = "install av from its wheel: pip install --force-reinstall --only-binary av av"
        yield Finding(
            check="codecs", level="problem", found=f"missing: {', '.join(facts.missing_codecs)}", advice=advice
        )
    if facts.scan_error is not None:
        advice = "no video can be scanned on this node"
        yield Finding(check="scan", level="problem", found=facts.scan_error, advice=advice)
    if not facts.missing_codecs and facts.scan_error is None and not facts.import_errors:
        yield Finding(check="codecs", level="ok", found="h264, hevc, vp9, av1; a test video was encoded and scanned")


def cpus(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """Ray schedules no more CPUs than the node may use."""
    facts = node.facts
    usable = float(facts.cpus) if facts.cpu_quota is None else min(facts.cpus, facts.cpu_quota)
    found = f"Ray has {node.ray_cpus:g}"
    if facts.cpu_quota is not None:
        found += f"; the container's quota is {facts.cpu_quota:g} CPUs"
    elif node.ray_cpus > usable:
        found += f"; the CPU affinity allows {facts.cpus}"
    if node.ray_cpus >= usable + 1:
        advice = f"tasks slow each other down: start Ray with --num-cpus {max(1, int(usable))}"
        yield Finding(check="CPUs", level="warning", found=found, advice=advice)
    else:
        yield Finding(check="CPUs", level="ok", found=found)


def memory(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """Memory for a scan on every CPU, and shared memory for Ray's object store."""
    facts = node.facts
    found = f"{_size(facts.memory_bytes)} for {node.ray_cpus:g} CPUs"
    if facts.memory_bytes < node.ray_cpus * _MEMORY_PER_CPU_BYTES:
        advice = "expected 1 GB per CPU: start Ray with fewer CPUs, or lower limits.memory_bytes"
        yield Finding(check="memory", level="warning", found=found, advice=advice)
    else:
        yield Finding(check="memory", level="ok", found=found)
    found = f"{_size(facts.shared_bytes)} free"
    if facts.shared_bytes < _LEAST_SHARED_BYTES:
        advice = "Ray keeps objects on disk: start the container with more (docker run --shm-size=2g)"
        yield Finding(check="shared memory", level="warning", found=found, advice=advice)
    else:
        yield Finding(check="shared memory", level="ok", found=found)


def open_files(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """Enough open files for Ray's processes."""
    limit, least = node.facts.open_files, least_open_files(int(node.ray_cpus))
    if 0 <= limit < least:
        advice = f"expected at least {least:,}: raise the limit (ulimit -Hn 65536)"
        yield Finding(check="open files", level="problem", found=f"at most {limit:,}", advice=advice)
    else:
        found = "no limit" if limit < 0 else f"at most {limit:,}"
        yield Finding(check="open files", level="ok", found=found)


def temporary_folder(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """The temporary folder is writable and has room for thumbnails."""
    facts, spool_bytes = node.facts, config.scan.limits.spool_bytes
    level: Level
    found, level, advice = f"{facts.temporary}: {_size(facts.temporary_bytes)} free", "ok", ""
    if facts.temporary_error is not None:
        found, level = f"{facts.temporary}: {facts.temporary_error}", "problem"
        advice = "set TMPDIR to a writable folder"
    elif facts.temporary_bytes < _LEAST_TEMPORARY_BYTES:
        level, advice = "problem", "make room, or set TMPDIR to another folder"
    elif facts.temporary_bytes < spool_bytes:
        level = "warning"
        advice = f"a scan may need {_size(spool_bytes)} (limits.spool_bytes): make room, or set TMPDIR"
    yield Finding(check="temporary folder", level=level, found=found, advice=advice)


def gpus(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """Ray schedules the GPUs of the node and torch can use them, if a stage asks for one."""
    facts = node.facts
    stages = [stage.name for stage in clip_stages(config) if stage.resources.num_gpus]
    if not stages:
        yield Finding(check="GPU", level="ok", found="no stage uses one")
    elif node.ray_gpus and facts.gpu_error is not None:
        advice = "install a torch build for this driver, or start Ray with --num-gpus 0"
        yield Finding(check="GPU", level="problem", found=f"torch cannot use it: {facts.gpu_error}", advice=advice)
    elif node.ray_gpus:
        names = ", ".join(dict.fromkeys(facts.gpu_names)) or "none that torch can use"
        level: Level = "ok" if facts.gpu_names else "problem"
        advice = "" if facts.gpu_names else "start Ray with --num-gpus 0, or mend the driver"
        yield Finding(check="GPU", level=level, found=f"Ray has {node.ray_gpus:g}: {names}", advice=advice)
    elif facts.gpus:
        advice = f"{_on_cpus(stages)}; start Ray with --num-gpus {facts.gpus}"
        yield Finding(check="GPU", level="warning", found=f"the node has {facts.gpus}, Ray has none", advice=advice)
    else:
        yield Finding(check="GPU", level="ok", found=f"none; {_on_cpus(stages)}")


def _on_cpus(stages: Sequence[str]) -> str:
    return f"{' and '.join(stages)} {'runs' if len(stages) == 1 else 'run'} on CPUs"


def models(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """The weights that the configuration names are on the node and can be loaded."""
    facts = node.facts
    for name, digest in facts.model_digests.items():
        yield Finding(check=f"weights of {name}", level="ok", found=digest or "inside the package")
    for name, error in facts.model_errors.items():
        found, *lines = (line.strip() for line in error.splitlines())
        level: Level = "problem"
        advice = "; ".join(lines)
        if name in facts.models_missing:
            found, level = "not on this node; the run downloads them before it starts", "warning"
            if facts.download_error is not None:
                found, level = f"not on this node, and there is no network: {facts.download_error}", "problem"
        yield Finding(check=f"weights of {name}", level=level, found=found, advice=advice)


def endpoints(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """The endpoints of captioners answer and serve the model."""
    for name, error in node.facts.endpoint_errors.items():
        url = getattr(config.captioners, name).base_url
        if error is None:
            yield Finding(check=f"endpoint of {name}", level="ok", found=f"{url} answers")
        else:
            advice = "the address must lead to the same server from every node"
            yield Finding(check=f"endpoint of {name}", level="problem", found=error, advice=advice)


def clock(node: Node, config: CurateConfig) -> Iterator[Finding]:
    """The clock agrees with the driver's: heartbeats of runs are compared across nodes."""
    if abs(node.clock_offset_s) > _CLOCK_S:
        found = f"{abs(node.clock_offset_s):.0f} s {'ahead of' if node.clock_offset_s > 0 else 'behind'} the driver's"
        yield Finding(check="clock", level="warning", found=found, advice="synchronize the clocks (NTP)")


def output(node: Node, out: str) -> Finding:
    """The dataset folder can be written from the node, and is the driver's."""
    facts = node.facts
    if facts.out_error is not None:
        advice = "every node writes there: mount it at the same path, or set the store's credentials"
        return Finding(check="output", level="problem", found=f"{out}: {facts.out_error}", advice=advice)
    if facts.out_bytes is None:
        return Finding(check="output", level="ok", found=f"{out} can be written")
    room = f"{out}: {_size(facts.out_bytes)} free"
    if facts.out_bytes < _LEAST_OUT_BYTES:
        return Finding(check="output", level="warning", found=room, advice="make room, or choose another folder")
    return Finding(check="output", level="ok", found=room)


_PER_NODE: tuple[Callable[[Node, CurateConfig], Iterable[Finding]], ...] = (
    imports,
    decoding,
    cpus,
    memory,
    open_files,
    temporary_folder,
    gpus,
    models,
    endpoints,
    clock,
)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
