"""What one node has: gathered by a task on each node, or in this process. Errors are facts too; nothing is raised."""

import importlib
import importlib.metadata
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from clipmill import storage
from clipmill.errors import UserError
from curation.captioners import captioner_spec
from curation.scores.weight_fetch import WeightsMissing, check_answers
from pipelines.config import CurateConfig
from pipelines.machine import SHARED_MEMORY, cpu_quota, free_bytes, usable_memory_bytes

NATIVE_MODULES = ("av", "cv2", "duckdb", "onnxruntime", "pyarrow", "shapely", "torch")
"""Modules that load shared libraries: installed is not yet usable."""
DECODERS = ("h264", "hevc", "vp9", "av1")
ENCODER = "libx264"
FILTERS = ("setfield", "fieldmatch", "bwdif", "format")
"""Those that interlaced footage needs."""
_ENDPOINT_TIMEOUT_S = 10.0
_GPU_TIMEOUT_S = 120.0
_TEST_FRAMES, _TEST_FPS = 75, 25
_LIST_GPUS = (
    "import torch; torch.zeros(1, device='cuda'); "
    "print(*(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep='\\n')"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to look for on every node."""

    config: CurateConfig
    out: str | None = None
    """The dataset folder, absolute."""
    marker: str = ""
    """Name of the file that the driver wrote into it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node has. `None` for an error means that there is none."""

    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution -> version, of the distributions that clipmill requires; missing ones are left out."""
    import_errors: dict[str, str] = field(default_factory=dict)
    """Native module -> why it cannot be imported."""
    missing_codecs: tuple[str, ...] = ()
    scan_error: str | None = None
    """Why a small video cannot be encoded and scanned in a child process."""
    cpus: int = 1
    cpu_quota: float | None = None
    memory_bytes: int = 0
    shared_bytes: int = 0
    open_files: int = 0
    """Hard limit."""
    temporary: str = ""
    temporary_bytes: int = 0
    temporary_error: str | None = None
    gpus: int = 0
    """GPUs of the machine."""
    gpu_names: tuple[str, ...] = ()
    """Those that torch can use."""
    gpu_error: str | None = None
    model_digests: dict[str, str] = field(default_factory=dict)
    """Model -> digest of its weights, of those that load without a network."""
    model_errors: dict[str, str] = field(default_factory=dict)
    """Model -> why it does not."""
    models_missing: tuple[str, ...] = ()
    """Models whose weights are not on the node."""
    download_error: str | None = None
    """Why those cannot be downloaded."""
    endpoint_errors: dict[str, str | None] = field(default_factory=dict)
    """Captioner -> why its endpoint does not serve it."""
    out_error: str | None = None
    out_bytes: int | None = None
    """Free space, of a local folder."""
    clock_s: float = 0.0


def gather(question: Question) -> Facts:
    """Gather the facts of the machine that this runs on."""
    temporary, temporary_error = _temporary_folder()
    import_errors = _import_errors()
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    gpu_names, gpu_error = _usable_gpus() if gpus else ((), None)
    models = _Models() if import_errors else _models(question.config)
    out_error, out_bytes = _try_output(question)
    return Facts(
        python=platform.python_version(),
        versions=installed(),
        import_errors=import_errors,
        missing_codecs=() if "av" in import_errors else _missing_codecs(),
        scan_error=None if import_errors else _scan_error(question.config),
        cpus=len(os.sched_getaffinity(0)),
        cpu_quota=cpu_quota(),
        memory_bytes=usable_memory_bytes(),
        shared_bytes=free_bytes(SHARED_MEMORY),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        temporary=temporary,
        temporary_bytes=free_bytes(temporary),
        temporary_error=temporary_error,
        gpus=gpus,
        gpu_names=gpu_names,
        gpu_error=gpu_error,
        model_digests=models.digests,
        model_errors=models.errors,
        models_missing=tuple(models.missing),
        download_error=_download_error() if models.missing else None,
        endpoint_errors=_endpoints(question.config),
        out_error=out_error,
        out_bytes=out_bytes,
        clock_s=time.time(),
    )


def installed() -> dict[str, str]:
    """Distribution -> version: clipmill, and those of its requirements that are installed."""
    names = ["clipmill"]
    for requirement in importlib.metadata.requires("clipmill") or ():
        if "extra ==" not in requirement:
            names.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def python_and_versions() -> Facts:
    """Of this process alone: what must be equal on the machine that starts a run and on the nodes."""
    return Facts(python=platform.python_version(), versions=installed())


def write_marker(url: str, name: str) -> None:
    """Write an empty file into a folder, which is created if needed. Raises UserError."""
    fs, path = storage.filesystem(url)
    storage.write_bytes(fs, f"{path}/{name}", b"")


def remove_marker(url: str, name: str) -> None:
    """Remove such a file. Raises UserError."""
    fs, path = storage.filesystem(url)
    storage.remove(fs, f"{path}/{name}")


def _import_errors() -> dict[str, str]:
    errors = {}
    for name in NATIVE_MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # ImportError of a shared library, or whatever an initialization raises
            errors[name] = _short(error)
    return errors


def _missing_codecs() -> tuple[str, ...]:
    import av
    import av.filter

    def exists(name: str, mode: Any) -> bool:
        try:
            av.Codec(name, mode)
        except (av.error.FFmpegError, ValueError):
            return False
        return True

    missing = [f"decoder {name}" for name in DECODERS if not exists(name, "r")]
    missing += [] if exists(ENCODER, "w") else [f"encoder {ENCODER}"]
    return (*missing, *(f"filter {name}" for name in FILTERS if name not in av.filter.filters_available))


def _scan_error(config: CurateConfig) -> str | None:
    """Encode a small video and scan it as a run would: in a child process with its limits."""
    from clipmill.video_writer import Encoding, write_video
    from curation.inputs.sources import list_sources
    from curation.scan.isolation import Isolated
    from pipelines.parts import scan_safely

    rows_HW, columns_HW = np.mgrid[0:48, 0:64].astype(np.uint8)
    pictures = (np.stack([4 * columns_HW + i, 5 * rows_HW, rows_HW ^ columns_HW], 2) for i in range(_TEST_FRAMES))
    fps = Fraction(_TEST_FPS)
    try:
        with tempfile.TemporaryDirectory(prefix="clipmill-doctor-") as folder:
            path = Path(folder, "test.mp4")
            write_video(
                path,
                pictures,
                range(_TEST_FRAMES),
                time_base=1 / fps,
                fps=fps,
                width=64,
                height=48,
                encoding=Encoding(),
            )
            (source,) = list_sources([str(path)])
            with Isolated(config.scan.limits) as child:
                row = scan_safely(child, source, config).source
    except Exception as error:
        return _short(error)
    if row["error"]:
        return f"{row['error_kind']}: {row['error']}"
    frames = row["frames"]
    return None if frames == _TEST_FRAMES else f"{frames} of {_TEST_FRAMES} frames were decoded"


def _temporary_folder() -> tuple[str, str | None]:
    given = os.environ.get("TMPDIR", "")
    try:
        folder = tempfile.gettempdir()
        with tempfile.NamedTemporaryFile(prefix="clipmill-doctor-") as file:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError as error:
        return given or "/tmp", error.strerror or str(error)
    if given and os.path.abspath(given) != os.path.abspath(folder):
        return given, "is not writable" if os.path.isdir(given) else "does not exist"
    return folder, None


def _usable_gpus() -> tuple[tuple[str, ...], str | None]:
    """In a process of its own: Ray hides the GPUs from tasks that reserve none, and a broken driver can crash it."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _LIST_GPUS]
    try:
        listed = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return (), _short(error)
    if listed.returncode:
        return (), (listed.stderr.strip().splitlines() or [f"exit code {listed.returncode}"])[-1]
    return tuple(listed.stdout.splitlines()), None


@dataclass(kw_only=True)
class _Models:
    digests: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def _models(config: CurateConfig) -> _Models:
    """Load every model once, without a network."""
    from pipelines.model_specs import asked_models, forget_models, load_models, model_loaders

    models = _Models()
    try:
        with _offline():
            for name, load in model_loaders(config).items():
                try:
                    models.digests[name] = load()
                except Exception as error:
                    models.errors[name] = _full(error)
                    if isinstance(error, WeightsMissing):
                        models.missing.append(name)
            # Models that fail by themselves are known by now; this is whether they fit together.
            captioners = config.captioners.model_copy(update={"video": None, "merged": None, "others": {}})
            if not models.errors:
                unfit = _error_of(load_models, asked_models(config.model_copy(update={"captioners": captioners})))
                models.errors |= {"models": unfit} if unfit else {}
    finally:
        forget_models()
    return models


def _download_error() -> str | None:
    """Why weights cannot be downloaded; None if the hub answers."""
    from huggingface_hub import constants

    return _error_of(check_answers, constants.ENDPOINT)


def _endpoints(config: CurateConfig) -> dict[str, str | None]:
    """Captioner behind an endpoint -> why its endpoint does not serve it."""
    errors: dict[str, str | None] = {}
    for name in ("video", "merged"):
        settings = getattr(config.captioners, name)
        if settings is not None:
            captioner: Any = captioner_spec(name, settings.model_copy(update={"timeout_s": _ENDPOINT_TIMEOUT_S}))()
            errors[name] = _error_of(captioner.load) or captioner.unavailable()
    return errors


def _try_output(question: Question) -> tuple[str | None, int | None]:
    """Why the output folder cannot be used from here, and its free space if it is local."""
    if question.out is None:
        return None, None
    own = f"{question.marker}-{socket.gethostname()}-{os.getpid()}"
    try:
        fs, path = storage.filesystem(question.out)
        free = free_bytes(path) if storage.is_local(fs) else None
        if not storage.exists(fs, f"{path}/{question.marker}"):
            return "the file that the driver wrote there is not seen: not the same folder, or not mounted", free
        write_marker(question.out, own)
        remove_marker(question.out, own)
    except Exception as error:  # of a client library, too
        return _short(error), None
    return None, free


@contextmanager
def _offline() -> Iterator[None]:
    """Hugging Face's client, and ours, use no network in the block."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _error_of(action: Callable[..., object], *arguments: object) -> str | None:
    try:
        action(*arguments)
    except Exception as error:
        return _full(error)
    return None


def _full(error: Exception) -> str:
    """All lines of one of our errors; others as `_short`."""
    return str(error) if isinstance(error, UserError) else _short(error)


def _short(error: Exception) -> str:
    """The first line of an error, with its type unless it is one of ours."""
    line = str(error).strip().partition("\n")[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}".rstrip(" :")
