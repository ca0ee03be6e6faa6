"""Fixtures shared by all tests (real footage, one Ray per session, a local object store) and how tests are spread."""

import atexit
import contextlib
import gc
import io
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import hypothesis
import pytest

from pipelines.cluster import connected

if TYPE_CHECKING:
    from training.distributed import Process

pytest_plugins = ["tests.gcs", "tests.s3"]

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_SECOND_RAY = ("test_kill", "test_train_restart", "test_cli")
"""Files with a Ray of their own, beside the one that all others share: together they take as long as those."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core, and one more for slow tests: many of those wait for others that they started."""
    return (os.cpu_count() or 1) + ("not slow" not in config.option.markexpr)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each process of pytest-xdist whole files, and those that need Ray to two of them; the longest come first."""
    files = {item: item.nodeid.partition("::")[0] for item in items}
    with_ray = {files[item] for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    slow = Counter(files[item] for item in items if item.get_closest_marker("slow"))
    for item, file in files.items():
        if file not in with_ray:
            group = file
        elif PurePath(file).stem in _SECOND_RAY:
            group = "second-ray"
        else:
            group = "ray"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (files[item] not in with_ray, -slow[files[item]], files[item]))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of modules and tests: each full collection took half a second."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Heed Ctrl-C here and in all that tests start: background jobs of a shell inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@atexit.register
def _silence_interpreter_shutdown() -> None:
    """nanobind, inside DuckDB, reports live module-level objects as leaks after the result of the tests was printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def local_ray(s3_endpoint: str) -> Iterator[None]:
    """One Ray for all tests that need one. It starts after the object store, whose address its workers inherit."""
    with connected():
        yield


@dataclass(frozen=True)
class FinishedDemo:
    """A demo that ran to its end: tests read it, those that change something work on a copy."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> FinishedDemo:
    """The demo with half of its videos and a few steps of each stage of training."""
    from demo.__main__ import run  # imports torch, which most tests do without

    folder, printed = tmp_path_factory.mktemp("demo") / "demo-output", io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(folder, [], 12, steps_share=0.001)
    return FinishedDemo(folder, printed.getvalue())


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, finished_demo: FinishedDemo) -> Path:
    """What a reader of the README has after the demo: `demo-output/` with footage, dataset, recipe and models."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(finished_demo.folder, folder / "demo-output")
    (folder / "demo").symlink_to(Path(__file__).resolve().parents[1] / "demo")
    return folder


@pytest.fixture
def process() -> Iterator["Process"]:
    """A process group of this process alone."""
    from training.distributed import join, leave  # imports torch, which most tests do without

    yield join("cpu")
    leave()


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real footage; skips without it, but fails in CI, where it has to be there."""
    return _shared("videos", "CLIPMILL_TEST_VIDEOS")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of LAION's aesthetic heads; skips without it, but fails in CI, where it has to be there."""
    return _shared("weights", "CLIPMILL_TEST_WEIGHTS")


def _shared(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable, Path(__file__).resolve().parents[2] / "shared" / name))
    if not folder.is_dir():
        message = f"needs a folder of {name}, there is none at {folder}: point {variable} to one (CONTRIBUTING.md)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
