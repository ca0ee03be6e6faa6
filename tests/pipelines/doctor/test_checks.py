"""Each check on facts that are right, and on facts of which one is wrong."""

from dataclasses import replace
from typing import Any

import pytest

from curation.captioners.endpoint import VideoConfig
from curation.scan.one_pass import ScanConfig
from curation.video.decode import Limits
from pipelines.config import CaptionersConfig, CurateConfig
from pipelines.doctor.checks import Finding, Node, findings
from pipelines.doctor.facts import Facts

GB = 1_000_000_000
CONFIG = CurateConfig()
HEALTHY = Facts(
    python="3.11.7",
    versions={"clipmill": "0.1.0", "ray": "2.60.0", "av": "18.1.0"},
    cpus=8,
    memory_bytes=32 * GB,
    shared_bytes=16 * GB,
    open_files=65536,
    temporary="/tmp",
    temporary_bytes=100 * GB,
    model_digests={"clip_embedder": "0123456789abcdef", "text_area": ""},
    out_bytes=500 * GB,
)


def node(name: str = "a", *, ray_cpus: float = 8, ray_gpus: float = 0, offset_s: float = 0, **changes: Any) -> Node:
    facts = replace(HEALTHY, **changes)
    return Node(name=name, facts=facts, ray_cpus=ray_cpus, ray_gpus=ray_gpus, clock_offset_s=offset_s)


def bad(*nodes: Node, config: CurateConfig = CONFIG, **more: Any) -> list[Finding]:
    return [finding for finding in findings(nodes, config, out="s3://b/d", **more) if finding.level != "ok"]


def test_healthy_nodes_have_one_row_per_check():
    listed = findings([node("a"), node("b")], CONFIG, out="/data")
    assert {finding.level for finding in listed} == {"ok"}
    assert {finding.node for finding in listed} == {""}
    names = [finding.check for finding in listed]
    assert len(set(names)) == len(names)
    assert {"versions", "codecs", "CPUs", "memory", "shared memory", "open files", "temporary folder", "GPU"} <= {
        *names
    }
    assert {"weights of clip_embedder", "weights of text_area", "output"} <= {*names}


@pytest.mark.parametrize(
    ("changes", "check", "level", "found", "advice"),
    [
        ({"import_errors": {"cv2": "libGL.so.1: cannot open"}}, "import cv2", "problem", "libGL", "system package"),
        ({"missing_codecs": ("decoder av1",)}, "codecs", "problem", "missing: decoder av1", "wheel"),
        ({"scan_error": "crashed: killed"}, "scan", "problem", "crashed", "no video can be scanned"),
        ({"cpu_quota": 2.5}, "CPUs", "warning", "quota is 2.5 CPUs", "--num-cpus 2"),
        ({"cpu_quota": 0.5}, "CPUs", "warning", "quota is 0.5", "--num-cpus 1"),
        ({"cpus": 4}, "CPUs", "warning", "affinity allows 4", "--num-cpus 4"),
        ({"memory_bytes": 4 * GB}, "memory", "warning", "4.0 GB for 8 CPUs", "fewer CPUs"),
        ({"shared_bytes": 64 << 20}, "shared memory", "warning", "67 MB free", "--shm-size"),
        ({"open_files": 64}, "open files", "problem", "at most 64", "ulimit -Hn"),
        ({"temporary_error": "does not exist"}, "temporary folder", "problem", "/tmp: does not exist", "TMPDIR"),
        ({"temporary_bytes": 1 << 20}, "temporary folder", "problem", "1 MB free", "make room"),
        ({"temporary_bytes": 1 << 29}, "temporary folder", "warning", "537 MB free", "limits.spool_bytes"),
        ({"gpus": 2}, "GPU", "warning", "the node has 2, Ray has none", "--num-gpus 2"),
        ({"model_errors": {"text_area": "damaged\n  a\n  b"}}, "weights of text_area", "problem", "damaged", "a; b"),
        ({"out_error": "not seen"}, "output", "problem", "s3://b/d: not seen", "mount"),
        ({"out_bytes": 1 << 20}, "output", "warning", "1 MB free", "make room"),
    ],
)
def test_what_is_wrong_is_found_with_what_to_do(
    changes: dict[str, Any], check: str, level: str, found: str, advice: str
):
    (finding,) = bad(node(**changes))
    assert (finding.check, finding.level) == (check, level)
    assert found in finding.found
    assert advice in finding.advice


def test_a_finding_names_the_node_unless_all_have_it():
    few = {"open_files": 64}
    (one,) = bad(node("a"), node("b", **few))
    assert one.node == "b"
    (both,) = bad(node("a", **few), node("b", **few))
    assert both.node == ""


def test_quotas_that_ray_keeps_to_are_right():
    assert bad(node(cpu_quota=1.5, ray_cpus=2)) == []
    assert bad(node(open_files=-1)) == []  # no limit
    assert bad(node(out_bytes=None)) == []  # an object store


def test_versions_have_to_be_the_same_everywhere():
    newer = {"versions": HEALTHY.versions | {"av": "18.2.0"}}
    (warning,) = bad(node("a"), node("b", **newer), node("c", **newer))
    assert (warning.check, warning.level) == ("version of av", "warning")
    assert warning.found == "18.1.0 on a, 18.2.0 on b, c"
    (problem,) = bad(node("a"), node("b", python="3.12.0"))
    assert (problem.check, problem.level) == ("version of python", "problem")
    (missing,) = bad(node("a"), node("b", versions={"clipmill": "0.1.0", "ray": "2.60.0"}))
    assert (missing.level, missing.found) == ("problem", "18.1.0 on a, not installed on b")
    (of_driver,) = bad(node("a"), driver=Facts(python="3.11.7", versions=HEALTHY.versions | {"clipmill": "0.2.0"}))
    assert of_driver.found == "0.2.0 on the driver, 0.1.0 on a"


def test_weights_have_to_be_the_same_on_all_nodes():
    (finding,) = bad(node("a"), node("b", model_digests={"clip_embedder": "f" * 16, "text_area": ""}))
    assert (finding.check, finding.level) == ("weights of clip_embedder", "problem")
    assert finding.found == f"differ: 0123456789abcdef on a, {'f' * 16} on b"


def test_missing_weights_are_a_problem_only_without_a_network():
    gone: dict[str, Any] = {
        "model_digests": {},
        "model_errors": {"clip_embedder": "not there\n  offline: copy them"},
        "models_missing": ("clip_embedder",),
    }
    (downloaded,) = bad(node(**gone))
    assert (downloaded.level, downloaded.advice) == ("warning", "offline: copy them")
    (unreachable,) = bad(node(**gone, download_error="no route"))
    assert (unreachable.level, unreachable.found) == ("problem", "not on this node, and there is no network: no route")


def test_gpus():
    assert bad(node(ray_gpus=2, gpus=2, gpu_names=("NVIDIA H200", "NVIDIA H200"))) == []
    (broken,) = bad(node(ray_gpus=1, gpus=1, gpu_error="CUDA driver version is insufficient"))
    assert (broken.level, broken.found) == ("problem", "torch cannot use it: CUDA driver version is insufficient")
    (vanished,) = bad(node(ray_gpus=1))
    assert (vanished.check, vanished.level) == ("GPU", "problem")
    without = CurateConfig(without=("aesthetic", "similarity"))
    assert bad(node(gpus=2), config=without) == []  # no stage uses one


def test_endpoints():
    config = CurateConfig(captioners=CaptionersConfig(video=VideoConfig(base_url="http://h:1/v1", model="m")))
    assert bad(node(endpoint_errors={"video": None}), config=config) == []
    (finding,) = bad(node(endpoint_errors={"video": "no connection"}), config=config)
    assert (finding.check, finding.level, finding.found) == ("endpoint of video", "problem", "no connection")


@pytest.mark.parametrize(("offset_s", "words"), [(0.0, None), (-20.0, None), (40.0, "ahead of"), (-40.0, "behind")])
def test_clocks(offset_s: float, words: str | None):
    listed = bad(node(offset_s=offset_s))
    assert [finding.found for finding in listed] == ([f"40 s {words} the driver's"] if words else [])


def test_temporary_space_follows_the_limits():
    config = CurateConfig(scan=ScanConfig(limits=Limits(spool_bytes=100 << 20)))
    assert bad(node(temporary_bytes=200 << 20), config=config) == []
