"""Where a local Ray runs and how much memory it takes, on machines that lack something; no Ray is started."""

import os
import resource
from pathlib import Path

import pytest

from clipmill.errors import UserError
from pipelines import cluster, local_ray
from pipelines.local_ray import check_open_files, object_store_bytes, private_ray, ray_folder

MIB, GIB = 1 << 20, 1 << 30
SOCKET = "/ray/session_2026-11-29_21-34-18_123456_1234567/sockets/plasma_store"
"""What Ray appends to the folder, with a process id of seven digits."""


def short(tmp_path: Path, name: str) -> str:
    """A folder with a short path."""
    link = Path("/tmp") / f"{name}{os.getpid()}"
    link.symlink_to(tmp_path)
    return str(link)


def test_sockets_fit_into_every_folder_that_is_chosen():
    longest = "/" + "x" * (local_ray._LONGEST_PATH_BYTES - len("/clipmill-ray-12345678") - 1)
    assert local_ray._path_bytes(longest) == local_ray._LONGEST_PATH_BYTES
    assert len(f"{longest}/clipmill-ray-12345678{SOCKET}") <= 107


def test_a_temporary_folder_with_a_long_path_is_replaced(tmp_path: Path):
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    usable = short(tmp_path, "cm")
    try:
        assert ray_folder(str(deep), ["/nowhere", usable]) == usable
        assert ray_folder(usable, ["/tmp"]) == usable
    finally:
        os.unlink(usable)


def test_no_folder_is_one_sentence_that_says_why(tmp_path: Path):
    deep = str(tmp_path / ("d" * 60))
    with pytest.raises(UserError, match=rf"\({deep} has a path of more than \d+ bytes; /nowhere is not writable\)"):
        ray_folder(deep, ["/nowhere"])


def test_a_full_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    room = {"/tmp": 3 * MIB, "/var/tmp": GIB}
    monkeypatch.setattr(local_ray, "free_bytes", lambda place: room[place])
    assert ray_folder("/tmp", ["/var/tmp"]) == "/var/tmp"
    with pytest.raises(UserError, match="/tmp has 3 MiB of free space"):
        ray_folder("/tmp", [])


@pytest.mark.parametrize(
    ("memory", "shared", "disk", "expected"),
    [
        pytest.param(64 * GIB, 32 * GIB, GIB, None, id="usual machine: Ray's default"),
        pytest.param(64 * GIB, 2 * GIB, 0, int(2 * GIB * 0.95), id="some shared memory is all used"),
        pytest.param(64 * GIB, 64 * MIB, 100 * GIB, 2 * GIB, id="a container's 64 MB: on disk"),
        pytest.param(64 * GIB, 64 * MIB, GIB, int(GIB * 0.95 / 2), id="at most half of the disk"),
        pytest.param(512 * MIB, 64 * MIB, GIB, 256 * MIB, id="little memory"),
    ],
)
def test_the_object_store_fits_where_it_is_put(memory: int, shared: int, disk: int, expected: int | None):
    assert object_store_bytes(memory=memory, shared=shared, disk=disk) == expected


def test_no_room_for_the_object_store_is_one_sentence():
    with pytest.raises(UserError, match=r"/dev/shm has 64 MiB and the temporary folder 200 MiB .* --shm-size=2g"):
        object_store_bytes(memory=64 * GIB, shared=64 * MIB, disk=200 * MIB)


def test_too_few_open_files_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refused)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 256))
    with pytest.raises(UserError, match="may open 256 files, expected at least 352 for 64 CPUs"):
        check_open_files(64)
    check_open_files(8)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, resource.RLIM_INFINITY))
    check_open_files(64)


def test_open_files_are_raised_where_that_is_permitted(monkeypatch: pytest.MonkeyPatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    check_open_files(2)
    assert limits == [(104, 104)]


def test_a_tmpdir_that_is_not_there_is_mentioned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    monkeypatch.setattr(local_ray.tempfile, "tempdir", "/tmp")  # what tempfile falls back to
    with private_ray(1) as settings:
        assert settings["_temp_dir"].startswith("/tmp/clipmill-ray-")
    assert "TMPDIR is /nowhere/at/all, which does not exist; using /tmp" in " ".join(capsys.readouterr().err.split())


def test_no_temporary_folder_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(local_ray.tempfile, "gettempdir", none)
    with pytest.raises(UserError, match="set TMPDIR to a folder that is"), private_ray(1):
        pass


@pytest.mark.parametrize(("variable", "recreated"), [(None, False), ("0", False), ("1", True)])
def test_uv_run_does_not_recreate_the_environment_in_workers_unless_asked(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, recreated: bool
):
    from ray._private import ray_constants, worker
    from ray._private.runtime_env import uv_runtime_env_hook

    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "clipmill"])
    monkeypatch.setattr(uv_runtime_env_hook, "hook", lambda _: {"py_executable": "uv run", "working_dir": "."})
    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", variable != "0")  # as when Ray is imported
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", variable)
    cluster._keep_environment_of_nodes()
    environment = worker._maybe_modify_runtime_env(None, _skip_env_hook=False)
    assert (environment is not None and "working_dir" in environment) == recreated
