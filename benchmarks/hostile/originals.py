"""The valid inputs to mutate: rendered footage, a dataset and its shards, models, an unfinished run.

They are small and generated once by the production commands; later runs reuse the folder.
"""

import gzip
import json
import os
import shutil
import sys
import tarfile
import traceback
import zipfile
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import yaml

MODEL = {
    "widths": [32, 64], "attention": [True, False], "blocks_per_level": 1, "head_width": 16, "context_width": 16,
    "id_width": 16,
}  # fmt: skip
"""Overrides of the network presets."""
SETTINGS = {
    "model": {"overrides": {**MODEL, "frames": 3}},
    "data": {"frames": 3, "height_px": 32, "width_px": 48, "batch_size": 4, "workers": 0, "fps": [8]},
    "optimizer": {"warmup_steps": 2},
    "run": {"steps": 1, "batch_size": 4, "log_every": 1, "save_every": 1, "sample_every": None},
}
_LIMITS = {"limits": {"timeout_s": 20, "memory_bytes": 1 << 30}}


def make(folder: Path, names: Iterable[str]) -> Path:
    """Generate the missing originals in `folder`, each in its own process.

    Generating may start Ray or train, and a process that has done so cannot be forked for the cases. Raises
    RuntimeError if one fails.
    """
    for name in names:
        finished = folder / f"{name}.finished"
        if not finished.exists():
            maker, needs = _MAKERS[name]
            make(folder, needs)
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
            _in_child(lambda maker=maker, name=name: maker(folder / name))
            finished.touch()
    return folder


def _in_child(make_one: Callable[[], None]) -> None:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_one()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError("the originals could not be made: see above")


def clipmill(*arguments: object) -> int:
    """Run a `clipmill` command in this process; returns its exit code."""
    from pipelines.cli import main

    sys.argv = ["clipmill", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _done(*arguments: object) -> None:
    if code := clipmill(*arguments):
        raise RuntimeError(f"clipmill {' '.join(map(str, arguments))} exited with {code}")


def _footage(folder: Path) -> None:
    from footage.render import Shot, VideoSpec, render

    def video(name: str, seed: int, **encoding: object) -> None:
        shots = tuple(Shot(camera="pan", speed_px=1.0 + seed % 3, duration_s=2.5, seed=10 * seed + i) for i in range(2))
        spec = VideoSpec(name=name, shots=shots, fps=Fraction(12), width=128, height=72, keyframe_s=1.0, **encoding)  # type: ignore[arg-type]
        truth = render(spec, folder)
        (folder / f"{name}.truth.json").unlink()
        (folder / truth.file).with_suffix(".txt").write_text(f"clip number {seed} of rendered footage\n")

    video("h264", 0)
    video("hevc", 1, codec="hevc")
    video("turned", 2, container="mov", rotation=90)
    video("matroska", 3, container="mkv")
    video("vp9", 4, codec="vp9")
    video("stream", 5, container="ts")
    video("mpeg4", 6, codec="mpeg4")
    video("av1", 7, codec="av1")
    (folder / "h264.json").write_text(
        '{"captions": [{"text": "a slow pan", "start_s": 0.0, "end_s": 2.5, "source": "people"}, "the whole video"]}'
    )


def _configurations(folder: Path) -> None:
    from demo.model import FOLDER

    contents = {
        "curate": {
            "scan": {
                **_LIMITS, "spans": {"min_s": 1.0, "max_s": 30.0}, "motion": {"samples_per_s": 2.0},
                "cuts": {"hard_ratio": 2.0},
            },
            "clip_embedder": {"model": "ViT-B-32", "pretrained": "openai"},
            "captioners": {"coca": {"batch_size": 4}, "video": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}},
            "without": ["aesthetic", "similarity"], "duplicates": {"min_cosine": 0.9},
        },
        "rules": {
            "name": "some", "where": "duration_s > 0.5",
            "rules": {"motion": {"drop_lowest": "25%"}, "duration_s": {"min": 0.5}, "duplicate_rank": {"max": 0}},
        },
        "stage": SETTINGS,
        "recipe": {
            "init": "nowhere",
            "stages": [
                {"stage": "tiny-image", "data": "nowhere-images", "set": {"run": {"steps": 1}}, "name": "first"},
                {"stage": "tiny-image-to-video", "data": "nowhere", "images": "nowhere", "set": SETTINGS},
            ],
        },
        "limits": {"scan": {**_LIMITS, "spans": {"min_s": 1.0}}},
        "demo": {
            "scan": {"spans": {"min_s": 1.0}}, "clip_embedder": {"model": str(FOLDER), "pretrained": None},
            "aesthetic": {"head": f"{FOLDER}/aesthetic.safetensors"},
        },
        "everything": {"name": "all", "rules": {"duration_s": {"min": 0}}},
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _lists(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    footage = folder.parent / "footage"
    addresses = [str(path.resolve()) for path in sorted(footage.iterdir()) if path.suffix not in (".txt", ".json")]
    captions = [f"what {Path(address).stem} shows" for address in addresses]
    (folder / "list.txt").write_text("".join(f"{address}\n" for address in addresses))
    rows = "".join(f'{a},"{c}"\n' for a, c in zip(addresses, captions, strict=True))
    (folder / "list.csv").write_text(f"uri,caption\n{rows}")
    pq.write_table(pa.table({"uri": addresses, "caption": captions}), folder / "list.parquet")
    (folder / "list.tsv").write_text("uri\tcaption\tlicense\n" + rows.replace(",", "\t").replace("\n", "\tCC0\n"))
    objects = [
        {"path": a, "captions": [c, c[:9]], "views": i}
        for i, (a, c) in enumerate(zip(addresses, captions, strict=True))
    ]
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in objects))
    (folder / "list.json").write_text(json.dumps(objects))
    (folder / "list.csv.gz").write_bytes(gzip.compress((folder / "list.csv").read_bytes()))
    with zipfile.ZipFile(folder / "videos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(footage / "h264.mp4", "deep/h264.mp4")
        archive.writestr("deep/h264.txt", "a caption")
    with tarfile.open(folder / "videos.tar", "w") as tar:
        tar.add(footage / "h264.mp4", "deep/h264.mp4")


def _model(folder: Path) -> None:
    import torch

    from svd.checkpoint import save_model
    from svd.config import UNetConfig
    from svd.model import Model, ModelConfig

    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in MODEL.items()}
    torch.manual_seed(0)
    unet = UNetConfig.preset("svd", **changes, frames=3)
    save_model(Model.build(ModelConfig.tiny(unet, width_px=48, height_px=32)), folder)


def _original(folder: Path) -> None:
    from svd.checkpoint import load_model, save_original

    save_original(load_model(folder.parent / "model"), folder / "model.safetensors")


def _lora(folder: Path) -> None:
    from svd.checkpoint import load_model
    from svd.lora import add_lora, save_lora

    unet = load_model(folder.parent / "model").unet
    add_lora(unet, rank=2)
    save_lora(unet, folder / "lora.safetensors")


def _clip(folder: Path) -> None:
    import torch

    from tests.curation.models import ARCHITECTURE, tiny_clip

    tiny_clip(folder)
    torch.save({"weight": torch.randn(1, ARCHITECTURE["embed_dim"]), "bias": torch.zeros(1)}, folder / "head.pt")


def _coca(folder: Path) -> None:
    from tests.curation.captioners.test_coca import TINY, random_model

    random_model(folder, TINY)


def _picture(folder: Path) -> None:
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(folder / "first.png")


def _dataset(folder: Path) -> None:
    config = folder.parent / "config"
    _done("curate", folder.parent / "footage", "--out", folder, "--config", config / "demo.yaml")
    _done("select", folder, "--config", config / "everything.yaml")
    _done("shard", folder, "--selection", "all", "--clips-per-shard", 6)
    _done("shard", folder, "--selection", "all", "--images")


def _copied(name: str) -> Callable[[Path], None]:
    return lambda folder: _copy(folder.parent / "dataset" / "shards" / name, folder)


def _copy(shards: Path, folder: Path) -> None:
    shutil.copytree(shards, folder, dirs_exist_ok=True)


def _latents(folder: Path) -> None:
    stage = ("--stage", "tiny-image-to-video", "--init", folder.parent / "model", *settings())
    _done("cache-latents", "--data", folder.parent / "clips", "--out", folder, *stage)


def _run(folder: Path) -> None:
    """Write a run that was stopped between its two checkpoints."""
    run = folder / "run"
    stage = ("--stage", "tiny-image-to-video", "--init", folder.parent / "model", *settings("run.steps=2"))
    _done("train", "--data", folder.parent / "latents", "--out", run, *stage)
    shutil.rmtree(run / "model")
    shutil.rmtree(max((run / "checkpoints").iterdir()))


def settings(*more: str) -> Sequence[str]:
    """`SETTINGS` as command line options."""
    pairs = [
        f"{group}.{name}={json.dumps(value)}" for group, values in SETTINGS.items() for name, value in values.items()
    ]
    return [word for pair in (*pairs, *more) for word in ("--set", pair)]


_MAKERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "footage": (_footage, ()),
    "config": (_configurations, ()),
    "lists": (_lists, ("footage",)),
    "model": (_model, ()),
    "original": (_original, ("model",)),
    "lora": (_lora, ("model",)),
    "clip": (_clip, ()),
    "coca": (_coca, ()),
    "picture": (_picture, ()),
    "dataset": (_dataset, ("footage", "config")),
    "clips": (_copied("all"), ("dataset",)),
    "images": (_copied("all-images"), ("dataset",)),
    "latents": (_latents, ("clips", "model")),
    "run": (_run, ("latents", "model")),
}
"""Folder -> function that generates it, and the folders that it needs."""
