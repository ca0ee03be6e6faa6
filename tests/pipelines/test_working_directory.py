"""Folders in the working directory that are named like our packages hide none of them, on the driver or in workers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("curation", "svd", "training", "pipelines")
SCRIPT = """
import json
from importlib import import_module

import ray

from pipelines.cluster import connected


@ray.remote(num_cpus=0)
def places(names):
    return [import_module(name).__file__ for name in names]


with connected(num_cpus=1):
    names = ["curation.scan.one_pass", "svd.unet", "training.cache_latents", "pipelines.cache_latents"]
    print(json.dumps(ray.get(places.remote(names))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True])
def test_ray_workers_import_our_packages_whatever_lies_in_the_working_directory(tmp_path: Path, installed: bool):
    here = tmp_path / "here"
    for name in PACKAGES:
        (here / name).mkdir(parents=True)
        if name != "svd":  # the one of our docs is a plain folder
            (here / name / "__init__.py").write_text("raise ImportError('the working directory')")
    root, environment = Path(__file__).parents[2], dict(os.environ)
    if installed:
        for name in PACKAGES:
            shutil.copytree(root / name, tmp_path / "site" / name, ignore=shutil.ignore_patterns("__pycache__"))
        root = tmp_path / "site"
        environment["PYTHONPATH"] = str(root)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "clipmill"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script)], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    paths = [Path(place) for place in json.loads(run.stdout.splitlines()[-1])]
    assert [place.relative_to(root).parts[0] for place in paths] == list(PACKAGES)
