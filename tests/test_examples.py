"""examples/: the package is installed as a user would, and its scorers and captioner run on a rendered dataset."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from clipmill import curate
from curation.dataset.tables import Dataset
from tests.docs import ROOT, blocks_of
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SPEEDS = {"still": 0.0, "slow": 1.0, "fast": 8.0}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment, with what is installed here and the examples."""
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    interpreter = folder / "venv" / "bin" / "python"
    packages = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = sysconfig.get_path("purelib")
    (Path(packages) / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    source = shutil.copytree(ROOT / "examples", folder / "examples")  # building writes into the folder
    uv = Path(sys.executable).with_name("uv")
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--python", interpreter, source]
    subprocess.run(install, check=True)
    return interpreter


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, local_ray) -> Dataset:
    """A still in red, and the same picture moving slowly and fast."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "in").mkdir()
    for name, speed in SPEEDS.items():
        frames = panning(height=96, pixels_per_frame=speed, frames=60, seed=4)
        if not speed:
            frames = [np.stack([frame[..., 0] // 4, frame[..., 1] // 4, frame[..., 2]], -1) for frame in frames]
        write_video(folder / "in" / f"{name}.mp4", frames, options={"crf": "20", "preset": "ultrafast"})
    curate([str(folder / "in")], str(folder / "dataset"), config=WITHOUT_CLIP, quiet=True)
    return Dataset(str(folder / "dataset"))


def test_the_examples_are_found_and_run(python: Path, dataset: Dataset, tmp_path: Path):
    (commands,) = (block for block in blocks_of("examples/README.md") if "clipmill score" in block.text)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    printed = ""
    for line in commands.text.splitlines():
        if line.startswith("clipmill "):
            words = line.replace("DATASET", dataset.url).split()[1:]
            run = [python, "-m", "clipmill", *words, "--num-cpus", "1"]
            done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            printed += done.stdout
    assert "sharpness, version 1" in printed
    assert "variety, version 1" in printed
    assert "colors, version 1: captioned 3 of 3 clips, 0 failed" in printed
    with dataset.connect() as connection:
        rows = connection.execute(
            "SELECT uri, sharpness, variety, sharpness_error, variety_error FROM joined"
        ).fetchall()
        captioned = connection.execute("SELECT uri, caption, colors_main, colors_share FROM joined").fetchall()
        digests = connection.execute('SELECT DISTINCT weights_digest FROM "scores_variety@1"').fetchall()
    found = {Path(uri).stem: (sharpness, variety) for uri, sharpness, variety, *_ in rows}
    assert found.keys() == SPEEDS.keys()
    assert {error for row in rows for error in row[3:]} == {None}
    assert found["still"][1] < 0.1 * found["slow"][1] < 0.1 * found["fast"][1] * 1.5
    assert all(sharpness > 10 for sharpness, _ in found.values())
    captions = {Path(uri).stem: row for uri, *row in captioned}
    assert {name: main for name, (_, main, _) in captions.items()} == {"still": "red", "slow": "grey", "fast": "grey"}
    assert captions["still"][0].endswith(" clip of 2 seconds, mostly red.")
    assert all(0.5 < share <= 1 for _, _, share in captions.values())
    assert len(digests) == 1
    assert len(digests[0][0]) == 16


@pytest.mark.parametrize(
    ("command", "option", "asked", "meant"),
    [("score", "scorer", "sharpnes", "sharpness"), ("caption", "captioner", "colours", "colors")],
)
def test_an_unknown_name_lists_those_of_installed_packages(
    python: Path, dataset: Dataset, tmp_path: Path, command: str, option: str, asked: str, meant: str
):
    run = [python, "-m", "clipmill", command, dataset.url, f"--{option}", asked]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"Did you mean '{meant}'?" in done.stderr
