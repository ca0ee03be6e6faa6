"""Run finetrainers' own dataset code on a dataset configuration; a process of its own, with the versions that it needs.

    python -m tests.trainers.finetrainers PACKAGES CONFIG      prints a JSON line per sample, like the trainer's loop

PACKAGES is a folder with `REQUIREMENTS`. Models and loggers that `import finetrainers` would load are left out.
"""

import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

REQUIREMENTS = ("finetrainers==0.2.0", "datasets==3.3.2")
_ROOT = Path(__file__).resolve().parents[2]


def samples(packages: Path, config: str, working_directory: Path) -> list[dict[str, Any]]:
    """`caption`, `shape` (frames, channels, height, width; after bucketing) and `frames` of the file, for each sample
    that the trainer sees in one epoch."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", __name__, str(packages), config]
    done = subprocess.run(
        command, cwd=working_directory, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert not done.returncode, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _dataset_code(packages: str) -> Any:
    """`finetrainers.data.dataset`, with versions of `datasets` and torchvision's interface from its time."""
    sys.path.insert(0, packages)
    import accelerate.utils  # noqa: F401
    import diffusers.training_utils  # noqa: F401 - before wandb seems to be installed
    import torchvision

    package = types.ModuleType("finetrainers")
    package.__path__ = [f"{packages}/finetrainers"]
    package.__spec__ = importlib.machinery.ModuleSpec("finetrainers", None, is_package=True)
    sys.modules |= {"finetrainers": package, "wandb": types.ModuleType("wandb")}
    torchvision.io.video_reader = types.SimpleNamespace(VideoReader=())
    from finetrainers.data import dataset

    return dataset


def main(packages: str, config: str) -> None:
    code = _dataset_code(packages)
    for settings in json.loads(Path(config).read_text())["datasets"]:
        root, kind = settings.pop("data_root"), settings.pop("dataset_type")
        found = code.initialize_dataset(root, kind, streaming=True, infinite=False)
        for sample in code.wrap_iterable_dataset_for_preprocessing(found, kind, settings):
            shape, frames = [*sample["video"].shape], sample["_original_num_frames"]
            print(json.dumps({"caption": sample["caption"], "shape": shape, "frames": frames}))


if __name__ == "__main__":
    main(*sys.argv[1:])
