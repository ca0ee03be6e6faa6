"""The files for clusters: what they name exists, and the Slurm script runs with stand-ins for Slurm's commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.main import get_command

from curation.dataset.tables import Dataset
from pipelines import cli
from pipelines.status import status
from tests.pipelines.corpora import many_small

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
QUANTITY = re.compile(r"\d+(\.\d+)?(Ki|Mi|Gi|Ti)?")

# Fields of KubeRay's v1 API, from ray-operator/apis/ray/v1 of its repository.
RAY_JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAY_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}
POD = {"containers", "volumes", "terminationGracePeriodSeconds"}
CONTAINER = {"name", "image", "ports", "envFrom", "resources", "volumeMounts"}


def ray_job() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


def check_command(words: list[str]) -> None:
    """Parse a command line with our own parser; nothing runs."""
    command, *arguments = words
    assert command == "clipmill"
    group = get_command(cli.app)
    name, subcommand, rest = group.resolve_command(
        group.make_context("clipmill", [], resilient_parsing=True), arguments
    )
    assert name
    subcommand.make_context(name, list(rest), resilient_parsing=False)


def test_the_ray_job_has_fields_of_kuberay_and_fits_together() -> None:
    job = ray_job()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= RAY_JOB
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) == HEAD_GROUP
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert set(group) <= WORKER_GROUP
        if group is not groups[0]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes text alone"
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        (container,) = pod["containers"]
        assert set(container) <= CONTAINER
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["shm"] == "/dev/shm"
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], "Ray takes the limits for what there is"
        assert all(QUANTITY.fullmatch(value) for value in resources["limits"].values())
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1


def test_the_ray_job_runs_a_command_of_clipmill_with_the_ray_that_is_tested() -> None:
    spec = ray_job()["spec"]
    check_command(shlex.split(spec["entrypoint"]))
    assert spec["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()


def tool(name: str) -> str:
    """A linter of the development dependencies."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_the_pods_of_the_ray_job_match_the_schema_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    cluster = ray_job()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": group["template"]["spec"]}
        validate.validate(pod, validate.latest_version(), strict=True)
        pod["spec"] = pod["spec"] | {"terminationGracePeriod": 30}
        with pytest.raises(validate.ValidationError):
            validate.validate(pod, validate.latest_version(), strict=True)


def test_the_dockerfile_is_without_findings() -> None:
    found = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert not found.stdout
    assert found.returncode == 0


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and argument, in order."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert not any(line.endswith("\\") for line in lines)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_installs_all_packages_from_the_files_that_it_copies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = [shlex.split(rest) for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    sources = {source for *names, _ in copied for source in names}
    packages = {
        pattern.rstrip("*").rstrip(".") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages <= sources
    assert all((ROOT / source).exists() for source in sources)
    assert {project["project"]["readme"], *project["project"].get("license-files", ["LICENSE"])} <= sources
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources <= let_through
    (install,) = (rest for name, rest in instructions() if name == "RUN" and "pip install" in rest)
    extras = re.search(r"'\.\[([a-z0-9,]+)\]'", install)
    assert extras is not None
    assert set(extras[1].split(",")) <= project["project"]["optional-dependencies"].keys()
    assert "ray[default]" in str(project["project"]["optional-dependencies"]["cluster"])


@pytest.mark.slow
def test_the_files_that_the_image_copies_make_a_whole_wheel(tmp_path: Path) -> None:
    for words in (shlex.split(rest) for name, rest in instructions() if name == "COPY" and "--from" not in rest):
        *sources, target = words
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / "src" / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / "src" / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "src" / target)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "out"), str(tmp_path / "src")], check=True, capture_output=True)
    ours = {
        path.relative_to(ROOT)
        for name in ("clipmill", "curation", "pipelines", "svd", "training")
        for path in (ROOT / name).rglob("*.py")
    }
    assert ours <= {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.py")}
    assert list((tmp_path / "out" / "pipelines" / "presets").glob("*.yaml"))
    assert list((tmp_path / "out" / "curation" / "report" / "template").glob("page.*"))


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job of two nodes, which are both this machine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    stand_ins = {
        "scontrol": 'test "$1 $2" = "show hostnames" && printf "first\\nsecond\\n"',
        # The command of a step follows its options.
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "hostname": "echo 127.0.0.1 10.9.9.9",
    }
    for name, script in stand_ins.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as sessions:  # paths of sockets are short
        yield os.environ | {
            "RAY_TMPDIR": sessions,
            "PATH": path,
            "CLIPMILL_BIN": "",
            "CLIPMILL_PORT": "26391",  # not one of Ray's worker ports, 10002 to 19999
            "CLIPMILL_SECRETS": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }


def test_the_slurm_script_is_bash_without_findings() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    usage = subprocess.run(["bash", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "usage: sbatch" in usage.stderr
    found = subprocess.run([tool("shellcheck"), str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert not found.stdout
    assert found.returncode == 0
    example = re.search(r"deploy/slurm\.sh (curate .*)", (DEPLOY / "slurm.sh").read_text())
    assert example is not None
    check_command(["clipmill", *shlex.split(example[1])])


@pytest.mark.slow
def test_the_slurm_script_curates_on_two_nodes_and_cleans_up(tmp_path: Path, slurm: dict[str, str]) -> None:
    videos, out = many_small(tmp_path / "in", 3), tmp_path / "out"
    command = ["bash", DEPLOY / "slurm.sh", "curate", videos, "--out", out, "--without", "similarity,aesthetic"]
    run = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    seen = status(Dataset(str(out)))
    assert (seen.sources_ok, {r.cpus for r in seen.runs}) == (3, {2.0})
    assert not list(tmp_path.glob(".clipmill-*")), "the token is gone"
    wait_until_gone(slurm["CLIPMILL_PORT"])
    again = subprocess.run(
        [*command[:4], "--nonsense"], env=slurm, capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 2, "the exit code is that of the command"
    wait_until_gone(slurm["CLIPMILL_PORT"])


@pytest.mark.slow
def test_a_signal_before_the_end_of_a_slurm_job_stops_the_run(tmp_path: Path, slurm: dict[str, str]) -> None:
    videos, out = many_small(tmp_path / "in", 40), tmp_path / "out"
    command = ["bash", DEPLOY / "slurm.sh", "curate", videos, "--out", out, "--without", "similarity,aesthetic"]
    run = subprocess.Popen([str(word) for word in command], env=slurm, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 200
    while not list(out.glob("sources/*.parquet")) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    _, printed = run.communicate(timeout=100)
    assert run.returncode == 130, printed
    assert not list(tmp_path.glob(".clipmill-*"))
    wait_until_gone(slurm["CLIPMILL_PORT"])


def wait_until_gone(port: str) -> None:
    """No process of the cluster with this port is left."""
    deadline_s = time.monotonic() + 30
    while left := [
        pid
        for pid, words in processes()
        if f"--gcs-address=127.0.0.1:{port}" in words or f"--gcs_server_port={port}" in words
    ]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.5)


def processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
    return found
