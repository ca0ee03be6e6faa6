"""The kinds of input to mutate, the command or function that reads each, and how cases are generated."""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile import readers
from benchmarks.hostile.mutate import mutate_bytes, mutated
from benchmarks.hostile.originals import settings

Command = Sequence[str] | Callable[[Path, Path], int]
"""Arguments of `clipmill`, with {case} and {originals} filled in, or a function of the two that returns an exit code.
"""

_STEP = ("--stage", "tiny-image-to-video", "--init", "{originals}/model", *settings())
_NOWHERE = ("--address", "127.0.0.1:1")
"""An address that refuses connections at once, for commands that would need a cluster."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input."""

    original: str
    """Folder of the originals that a case copies."""
    needs: tuple[str, ...] = ()
    """Other folders of originals that the commands use."""
    commands: tuple[Command, ...]
    """One of them is drawn for each case."""
    share: int
    """Number of cases in a hundred."""
    victims: str = "**/*"
    """Pattern of the files that may be damaged."""
    group: int = 1
    """Number of cases that one call of the command reads together."""


KINDS: dict[str, Kind] = {
    "video": Kind(
        original="footage", needs=("config",), victims="*.*[!tn]", share=22, group=40, commands=(readers.curate_all,)
    ),
    "sidecar": Kind(
        original="footage", needs=("config",), victims="h264.[jt]*", share=8, group=40, commands=(readers.curate_all,)
    ),
    "list": Kind(original="lists", share=8, commands=(readers.read_lists,)),
    "curate.yaml": Kind(
        original="config", needs=("dataset",), victims="curate.yaml", share=4,
        commands=(("duplicates", "{originals}/dataset", "--config", "{case}/curate.yaml"),),
    ),
    "rules.yaml": Kind(
        original="config", needs=("dataset",), victims="rules.yaml", share=4, commands=(readers.select_by_rules,),
    ),
    "stage.yaml": Kind(
        original="config", victims="stage.yaml", share=4,
        commands=(("train", "--stage", "tiny-image-to-video", "--config", "{case}/stage.yaml", "--dry-run"),),
    ),
    "recipe.yaml": Kind(
        original="config", victims="recipe.yaml", share=3,
        commands=(("train", "--recipe", "{case}/recipe.yaml", "--out", "{case}/runs"),),
    ),
    "dataset": Kind(
        original="dataset", needs=("footage", "config"), share=13,
        commands=(
            ("status", "{case}"),
            ("status", "{case}", "--json"),
            ("select", "{case}", "--config", "{originals}/config/everything.yaml"),
            ("select", "{case}"),
            ("duplicates", "{case}"),
            ("curate", "{originals}/footage", "--out", "{case}", "--config", "{originals}/config/demo.yaml", *_NOWHERE),
            ("shard", "{case}", "--selection", "all", "--clips-per-shard", "6", *_NOWHERE),
        ),
    ),
    "clips": Kind(
        original="clips", needs=("model",), victims="*.tar", share=8,
        commands=(
            *(readers.load_batches,) * 4,
            readers.cache_latents,
            ("train", "--data", "{case}", "--out", "{case}/run", *_STEP),
        ),
    ),
    "images": Kind(original="images", victims="*.tar", share=4, commands=(readers.load_pictures,)),
    "latents": Kind(
        original="latents", needs=("model",), victims="*.tar", share=5,
        commands=(
            *(readers.load_batches,) * 4,
            ("train", "--data", "{case}", "--out", "{case}/run", *_STEP),
        ),
    ),
    "clip": Kind(original="clip", share=4, commands=(readers.load_clip,)),
    "coca": Kind(original="coca", victims="open_clip_*", share=2, commands=(readers.load_coca,)),
    "model": Kind(
        original="model", needs=("picture",), share=4,
        commands=(
            ("export", "{case}", "--out", "{case}/exported"),
            ("sample", "{case}", "--image", "{originals}/picture/first.png", "--steps", "1", "--out", "{case}/v.mp4"),
        ),
    ),
    "original": Kind(
        original="original", share=1,
        commands=(("export", "{case}/model.safetensors", "--out", "{case}/exported"),),
    ),
    "lora": Kind(
        original="lora", needs=("model", "picture"), share=2,
        commands=(
            ("sample", "{originals}/model", "--lora", "{case}/lora.safetensors", "--steps", "1", "--out",
             "{case}/v.mp4", "--image", "{originals}/picture/first.png"),
        ),
    ),
    "checkpoint": Kind(
        original="run", needs=("latents", "model"), share=3,
        commands=(
            ("train", "--data", "{originals}/latents", "--out", "{case}/run", *_STEP, "--set", "run.steps=2"),
        ),
    ),
    "picture": Kind(
        original="picture", needs=("model",), share=1,
        commands=(
            ("sample", "{originals}/model", "--image", "{case}/first.png", "--steps", "1", "--out", "{case}/v.mp4"),
        ),
    ),
}  # fmt: skip


def kind_of(case: int) -> str:
    """Kind of a case, a function of its number: every hundred cases contain each kind by its share."""
    return _ORDER[case % len(_ORDER)]


def make_case(case: int, seed: int, originals: Path, folder: Path) -> str:
    """Write the damaged input of a case into `folder`; returns the damaged file."""
    kind, rng = KINDS[kind_of(case)], random.Random(f"{seed}/{case}")
    original = originals / kind.original
    victims = sorted(path for path in original.glob(kind.victims) if path.is_file())
    damaged = rng.choice(victims)
    if kind.group > 1:  # one video with what lies beside it, under a name of its own
        folder.mkdir(parents=True, exist_ok=True)
        for path in original.glob(f"{damaged.stem}.*"):
            shutil.copyfile(path, folder / f"{case:06d}{path.suffix}")
        target = folder / f"{case:06d}{damaged.suffix}"
    else:
        shutil.copytree(original, folder)
        target = folder / damaged.relative_to(original)
    content = before = target.read_bytes()
    while content == before:
        content = mutated(rng, target.name, content)
    if rng.random() < 0.2:  # of bytes alone: taking damaged tars and tables apart would need limits here, too
        content = mutate_bytes(rng, content)
    target.write_bytes(content)
    return str(damaged.relative_to(originals))


def command_of(case: int, seed: int) -> Command:
    """The command of a case, without placeholders filled in."""
    return random.Random(f"{seed}/{case}/command").choice(KINDS[kind_of(case)].commands)


_ORDER = [name for name, kind in KINDS.items() for _ in range(kind.share)]
random.Random(0).shuffle(_ORDER)
