"""What a reader does with a block of the documentation: run it, save it, compare it, or only read it."""

import contextlib
import io
import random
import re
import runpy
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clipmill.config import Config
from curation.dataset.tables import Dataset
from curation.inputs.captions import _parse_json
from curation.selection.rules import Rules
from curation.video.decode import Limits
from pipelines import recipe as recipes
from pipelines.config import CurateConfig
from pipelines.train import resolve_stage
from svd.checkpoint import save_model
from tests.docs import (
    ROOT,
    Block,
    Instead,
    Reader,
    blocks_of,
    check_command_line,
    commands_of,
    is_printed,
    session,
    yaml_of,
)
from tests.svd.models import tiny_model
from training.samples import choose_caption

Paste = Callable[[Reader, Block], None]


def shell(*instead: Instead, codes: tuple[int, ...] = (0,)) -> Paste:
    """Run it in a shell."""

    def paste(reader: Reader, block: Block) -> None:
        text = block.text
        for one in instead:
            text = one.applied(text)
        reader.paste(text, codes=codes)

    return paste


def python(*instead: Instead) -> Paste:
    """Run it as a script."""

    def paste(reader: Reader, block: Block) -> None:
        text = block.text
        for one in instead:
            text = one.applied(text)
        reader.python(text)

    return paste


def saved(name: str, reads: Callable[[Path], object] | None = None) -> Paste:
    """Save it under a name, for what comes after, and let the code read it that reads such a file."""

    def paste(reader: Reader, block: Block) -> None:
        path = reader.write(name, block.text)
        if reads is not None:
            reads(path)

    return paste


def read_by(config: type[Config]) -> Paste:
    """Let a configuration read the file."""
    return lambda _, block: config.from_values(yaml_of(block), origin=str(block)) and None


def in_turn(*pastes: Paste) -> Paste:
    """Several things, one after another."""

    def paste(reader: Reader, block: Block) -> None:
        for each in pastes:
            each(reader, block)

    return paste


def prints(reader: Reader, block: Block) -> None:
    """It is output: its headings and names have to be in what was printed before."""
    missing = is_printed(block.text, reader.printed)
    assert not missing, f"{missing} is shown but not printed; printed was\n{reader.printed}"


def transcript(reader: Reader, block: Block) -> None:
    """Commands and what they print; `cat FILE` shows a file that the reader has written."""
    for command, output in session(block.text):
        if command.startswith("cat "):
            reader.write(command.removeprefix("cat "), output)
            continue
        missing = is_printed(output, reader.paste(command))
        assert not missing, f"{block}: {missing} is shown but not printed"


def parsed(because: str) -> Paste:
    """It cannot run here, for a reason: its command lines are parsed, those of other tools by their --help."""
    assert because

    def paste(reader: Reader, block: Block) -> None:
        for words in commands_of(block.text):
            if "clipmill" in words:
                check_command_line(words[words.index("clipmill") + 1 :])
            if words[0] in ("ray", "hf", "torchrun"):
                subcommand = [word for word in words[1:2] if re.fullmatch(r"[a-z]+", word)]
                help_text = reader.paste(f"{words[0]} {' '.join(subcommand)} --help")
                for word in words[: words.index("clipmill") if "clipmill" in words else None]:
                    assert not word.startswith("--") or word.partition("=")[0].replace("_", "-") in help_text, word
            if words[0] == "python":
                _check_module(words[words.index("-m") + 1], [word for word in words[3:] if word.startswith("--")])

    return paste


def _check_module(name: str, options: list[str]) -> None:
    """`python -m NAME --help`, in this process, which has most of its imports already."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* found in sys.modules", category=RuntimeWarning)
        patch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(name, run_name="__main__")
    assert not ended.value.code, name
    assert "usage" in printed.getvalue(), name
    for option in options:
        assert option.strip("[]") in printed.getvalue(), f"{name} has no {option}"


def shown(because: str) -> Paste:
    """Not to be run or read by anything, for a reason. The files of this project that it names are there."""
    assert because
    return lambda _reader, _block: None


def made(because: str) -> Paste:
    """Targets of make, which would take long or lead back here: what they would run is printed and not run."""
    assert because

    def paste(_: Reader, block: Block) -> None:
        for words in commands_of(block.text):
            if words[0] == "make":
                targets = words[1 : words.index("&&") if "&&" in words else None]
                subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, check=True)

    return paste


def tree(root: str) -> Paste:
    """A folder's layout: each name in it is there in a folder that was made."""

    def paste(reader: Reader, block: Block) -> None:
        for line in block.text.splitlines():
            for name in re.findall(r"^(?:\w+/$|  )?([\w./*-]+(?:\.\w+|/|\*))(?:\s|,|$)", line):
                if name not in ("dataset/", "DATASET/", "RUN/", *ABSENT):
                    pattern = re.sub(r"PART|NAME", "*", name).removeprefix("RUN/").rstrip("/")
                    assert list((reader.folder / root).glob(pattern)), f"{block}: no {name}"

    return paste


def parse_each_line(_: Reader, block: Block) -> None:
    """Sidecars, one a line."""
    for line in block.text.splitlines():
        assert list(_parse_json(line))


def defaults(_: Reader, block: Block) -> None:
    """ "these are the defaults": as the configuration has them."""
    assert CurateConfig.from_values(yaml_of(block), origin=str(block)).scan.limits == Limits()
    assert set(yaml_of(block)["scan"]["limits"]) == set(Limits.model_fields)


def sql(reader: Reader, block: Block) -> None:
    """A query over the joined view."""
    with Dataset(str(reader.folder / "DATASET")).connect() as connection:
        connection.execute(block.text).fetchall()


def rule(reader: Reader, block: Block) -> None:
    """Lines of the `rules` of a rules file."""
    values = {"rules": yaml_of(block)}
    Rules.from_values({"name": "pasted", **values}, origin=str(block))
    reader.write("pasted.yaml", yaml.safe_dump(values))
    reader.paste("clipmill select DATASET --config pasted.yaml --replace")


def rules_file(name: str) -> Paste:
    """A whole rules file, by which the dataset can be selected from."""

    def paste(reader: Reader, block: Block) -> None:
        reader.write(name, block.text)
        reader.paste(f"clipmill select dataset --config {name}", codes=(0, 3))

    return paste


def write_takedown(reader: Reader, _: Block) -> None:
    """The list of one source of the dataset, other than the one that the block's last command removes."""
    uris = Dataset(str(reader.folder / "DATASET")).uris().values()
    uri = next(uri for uri in uris if "/003-" not in uri)
    reader.write("takedown.txt", f"{uri}\n")


def usage(reader: Reader, block: Block) -> None:
    """A command with options in brackets: without them and with them."""
    reader.paste(re.sub(r"\[.*?\]", "", block.text))
    reader.paste(re.sub(r"[\[\]]", "", block.text))


def caption_shares(reader: Reader, block: Block) -> None:
    """The settings of a stage, which draw captions from exactly the sources that are given, with their shares."""
    stage = resolve_stage("video", reader.write("stage.yaml", block.text))
    given = yaml_of(block)["data"]["captions"]
    captions = [{"source": name, "text": name} for name in ("list", "coca", "video", "merged")]
    rng = random.Random(0)
    drawn = Counter(captions[choose_caption(captions, stage.data.captions, rng)]["source"] for _ in range(4000))
    total = sum(given.values())
    assert set(drawn) == set(given)
    assert {name: drawn[name] / 4000 for name in given} == pytest.approx(
        {name: share / total for name, share in given.items()}, abs=0.04
    )


def recipe(reader: Reader, block: Block) -> None:
    """A recipe is read, and its stages are estimated."""
    path = reader.write("recipe.yaml", block.text)
    assert len(recipes.read_recipe(path).stages) == len(yaml_of(block)["stages"])
    reader.paste("clipmill train --recipe recipe.yaml --out RUNS --dry-run")


SMALL = {
    "widths": (64, 64),
    "attention": (True, False),
    "blocks_per_level": 1,
    "head_width": 16,
    "context_width": 32,
    "id_width": 32,
    "frames": 4,
}
"""The network of `tests.svd.models`, as differences from a preset."""


def sample_each(reader: Reader, block: Block) -> None:
    """A line for every task, each with a small model of that task."""
    tasks = iter(("image-to-video", "text-to-video", "interpolation", "multi-view", "image-to-video"))
    for line in block.text.splitlines():
        task = next(tasks)
        if not (reader.folder / task).exists():
            save_model(tiny_model(task), reader.folder / task)
        reader.paste(line.replace("CHECKPOINT", task))


def train_each(reader: Reader, block: Block) -> None:
    """Two steps on the demo's clips, of the demo's network; the estimate as it stands."""
    settings = yaml.safe_load((reader.folder / "demo-output/recipe.yaml").read_text())["stages"][1]["set"]
    settings["run"] |= {"steps": 2, "save_every": 1, "sample_every": 1, "log_every": 1}
    settings["optimizer"]["warmup_steps"] = 1
    reader.write("two-steps.yaml", yaml.safe_dump(settings))
    small = Instead("--init MODEL", "--init demo-output/initial --config two-steps.yaml", "200 steps take minutes")
    shell(small, Instead("DATASET/shards/NAME", "DATASET/shards/pretraining", "NAME is a selection"))(reader, block)


def write_demo_yaml(reader: Reader, _: Block) -> None:
    """The quickstart's configuration with the demo's models."""
    (block,) = (b for b in blocks_of("docs/quickstart.md") if b.text.startswith("clip_embedder: {model: demo/clip}"))
    reader.write("demo.yaml", block.text)


def dataset_python(reader: Reader, block: Block) -> None:
    """A script over a dataset; NAME is one of its selections."""
    assert reader.python(block.text.replace("NAME", "svd-paper")).strip()


def notebook(reader: Reader, block: Block) -> None:
    """A cell of a notebook that displays JPEGs."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config as ShellConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(reader.folder / ".ipython"))  # not into the home folder
        patch.chdir(reader.folder)
        shell = InteractiveShell.instance(config=ShellConfig({"HistoryManager": {"enabled": False}}))
        try:
            with capture_output() as captured:
                shell.run_cell(block.text).raise_error()
        finally:
            InteractiveShell.clear_instance()
    displayed = [output.data for output in captured.outputs]
    assert displayed
    assert all(isinstance(data.get("image/jpeg"), bytes | str) for data in displayed)


ABSENT = {
    "RUN/lora.safetensors": "only a LoRA stage leaves it",
    "latents.json": "`clipmill cache-latents` leaves it, on these shards",
    "removal.json": "it is there while `clipmill remove` runs",
    "published.json": "`clipmill publish` leaves it, which the demo does not run",
    "removed/*.parquet": "`clipmill remove` leaves it",
    "scores/NAME/versions.json": "`clipmill score` leaves it, which the demo does not run",
    "scores/NAME/vN/PART.parquet": "the same",
    "captions/NAME/versions.json": "`clipmill caption` leaves it, which the demo does not run",
    "captions/NAME/vN/PART.parquet": "the same",
    "scores/against_NAME/": "`clipmill duplicates --against` leaves it, which the demo does not run",
    "scores/cluster/vN/PART.parquet": "`clipmill cluster` leaves it, which the demo does not run",
    "search/embeddings.arrow": "the same, or `clipmill search`",
}
