"""`clipmill doctor` on this machine and on a small cluster: facts that are real, and nothing left behind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines import cli, doctor
from pipelines.config import CurateConfig
from pipelines.doctor import Finding, facts
from pipelines.doctor.facts import Question, gather, installed
from tests.caption_server import CaptionServer, Reply, refused_url
from tests.pipelines.corpora import WITHOUT_CLIP, WITHOUT_CLIP_OPTION

pytestmark = pytest.mark.slow


def by_check(listed: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in listed}


def test_facts_of_this_machine():
    facts = gather(Question(config=WITHOUT_CLIP))
    assert (facts.import_errors, facts.missing_codecs, facts.scan_error) == ({}, (), None)
    assert facts.versions["clipmill"] == installed()["clipmill"]
    assert {"av", "ray", "torch", "opencv-python-headless"} <= facts.versions.keys()
    assert facts.temporary_error is None
    assert min(facts.cpus, facts.memory_bytes, facts.shared_bytes, facts.temporary_bytes) > 0
    assert facts.model_digests == {"text_area": "", "picture_hash": ""}


def test_missing_codecs_and_filters_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facts, "DECODERS", ("h264", "no_decoder"))
    monkeypatch.setattr(facts, "ENCODER", "no_encoder")
    monkeypatch.setattr(facts, "FILTERS", ("bwdif", "no_filter"))
    missing = ("decoder no_decoder", "encoder no_encoder", "filter no_filter")
    assert gather(Question(config=WITHOUT_CLIP)).missing_codecs == missing


def test_a_child_that_cannot_scan_is_a_fact():
    config = WITHOUT_CLIP.model_copy(deep=True)
    limits = config.scan.limits.model_copy(update={"timeout_s": 0.001})
    config = config.model_copy(update={"scan": config.scan.model_copy(update={"limits": limits})})
    assert gather(Question(config=config)).scan_error == "timeout: not finished after 0.001 s"


def test_a_healthy_machine_has_no_problem_and_keeps_no_files(tmp_path: Path, local_ray: None):
    out = tmp_path / "a" / "b"
    listed = doctor.doctor(WITHOUT_CLIP, out=str(out), quiet=True)
    assert [finding for finding in listed if finding.level == "problem"] == []
    assert by_check(listed)["output"].found.startswith(str(out))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_stays(tmp_path: Path, local_ray: None):
    (tmp_path / "kept").write_text("x")
    doctor.doctor(WITHOUT_CLIP, out=str(tmp_path), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_object_store_is_written_to(s3_url: str, local_ray: None):
    listed = by_check(doctor.doctor(WITHOUT_CLIP, out=f"{s3_url}/dataset", quiet=True))
    assert listed["output"].level == "ok", listed["output"]
    assert listed["output"].found.endswith("can be written")


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch, capsys, local_ray: None):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"clip_embedder: {{model: {tmp_path}}}\naesthetic: {{head: {tmp_path}/none.pth}}\n"
        f"captioners: {{video: {{base_url: '{refused_url()}', model: m}}}}\n"
    )
    (tmp_path / "file").touch()
    arguments = ["doctor", "--config", str(config), "--out", f"{tmp_path}/file/out"]
    assert run(monkeypatch, *arguments, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    problems = {f["check"]: f["found"] for f in answer["findings"] if f["level"] == "problem"}
    assert problems.keys() == {"output", "endpoint of video", "weights of clip_embedder", "weights of aesthetic"}
    assert "Not a directory" in problems["output"]
    assert "neither a file nor one of LAION's" in problems["weights of aesthetic"]
    assert run(monkeypatch, *arguments) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "problem endpoint of video all no connection to" in printed
    assert "4 problems, no warnings" in printed
    assert run(monkeypatch, "doctor", "--without", "similarity,aesthetic") == 0


def test_an_endpoint_that_serves_another_model(tmp_path: Path, local_ray: None):
    served = Reply(body=b'{"object": "list", "data": [{"id": "other", "object": "model"}]}')
    with CaptionServer([], models=served) as server:
        values = {"video": {"base_url": server.url, "model": "wanted"}}
        config = CurateConfig.from_values({"captioners": values, "without": ["similarity", "aesthetic"]}, origin="test")
        finding = by_check(doctor.doctor(config, quiet=True))["endpoint of video"]
    assert finding.found == "expected the model wanted, but it serves other"


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    (finding,) = doctor.doctor(WITHOUT_CLIP, address="127.0.0.1:1", quiet=True)
    assert (finding.check, finding.level) == ("Ray", "problem")
    assert "127.0.0.1:1" in finding.found


@pytest.fixture
def cluster(local_ray: None) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


def test_every_node_of_a_cluster_is_asked(cluster: Cluster, tmp_path: Path):
    command = [sys.executable, "-m", "pipelines.cli", "doctor", "--address", cluster.address, "--json"]
    command += [*WITHOUT_CLIP_OPTION, "--out", str(tmp_path / "out")]
    answered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr + answered.stdout
    findings = {f["check"]: f for f in json.loads(answered.stdout)["findings"]}
    assert findings["Ray"]["found"] == "connected: 2 nodes, 3 CPUs, 0 GPUs"
    assert findings["versions"]["found"].endswith("everywhere")
    assert findings["codecs"]["node"] == ""
    assert list(tmp_path.iterdir()) == []


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clipmill", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)
