"""Every fenced block of the documentation, pasted as a reader would: commands run, configurations are read, outputs
have the headings that are shown.

`PAGES_AS_PASTED` says for each block what is done with it, and holds all exceptions with their reasons. A block that is
not there fails the test of its page.
"""

import contextlib
import io
import random
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from clipmill.config import Config
from curation.dataset.tables import Dataset
from curation.inputs.captions import _parse_json
from curation.scores.base import Scorer
from curation.selection.rules import Rules
from curation.video.decode import Limits
from pipelines import recipe as recipes
from pipelines.config import CurateConfig
from pipelines.train import resolve_stage
from svd.checkpoint import save_model, save_original
from tests.conftest import FinishedDemo
from tests.docs import (
    PAGES,
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
PACKAGES = ("clipmill", "curation", "svd", "training", "pipelines", "demo", "footage", "tests", "docs", "benchmarks")

NO_WEIGHTS = "the weights of ViT-L-14 have to be fetched: the demo's take their place"
NO_GPU = "there is no GPU"
TINY = "the released network has 1.5 billion parameters: a small one of the same kind takes its place"
CURATE_SMALL = Instead("--out dataset", "--out dataset --config demo.yaml", NO_WEIGHTS)


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


def parsed(because: str) -> Paste:
    """It cannot run here, for a reason: its command lines are parsed, those of other tools by their --help."""
    assert because

    def paste(reader: Reader, block: Block) -> None:
        for words in commands_of(block.text):
            if "clipmill" in words:
                check_command_line(words[words.index("clipmill") + 1 :])
            if words[0] in ("ray", "hf", "torchrun"):
                subcommand = [word for word in words[1:2] if re.fullmatch(r"[a-z]+", word)]
                told = reader.paste(f"{words[0]} {' '.join(subcommand)} --help")
                for word in words[: words.index("clipmill") if "clipmill" in words else None]:
                    assert not word.startswith("--") or word.partition("=")[0].replace("_", "-") in told, word
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


PAGES_AS_PASTED: Mapping[str, list[tuple[str, Paste]]] = {
    "README.md": [
        ("make demo", made("both take minutes; tests/pipelines/test_demo_train.py runs the demo, `make test` is this")),
        ("make setup", in_turn(write_demo_yaml, shell(
            CURATE_SMALL, Instead("make setup && . .venv/bin/activate\n", "", "installed, and active, for the tests")
        ))),
        ("name: moving", rules_file("moving.yaml")),
        ("from clipmill import curate", in_turn(
            lambda r, _: shutil.rmtree(r.folder / "dataset"),
            python(
                Instead('"dataset")\n    selection', '"dataset", config=demo_config())\n    selection', NO_WEIGHTS),
                Instead("from clipmill", "from demo.model import demo_config\nfrom clipmill", NO_WEIGHTS),
            ),
        )),
        ("init: sd21", recipe),
        ("clipmill train --recipe", parsed("takes Stable Diffusion 2.1 and GPUs; the quickstart's runs here")),
        ("python -m pipelines.recipes", parsed("needs released weights; tests/pipelines/recipes runs it, tiny")),
    ],
    "CONTRIBUTING.md": [
        ("make setup", made("they install and run these tests")),
        ("python -m demo.train_clip", parsed("trains for most of an hour")),
        ("python -m demo.train_parts", parsed("trains for most of an hour")),
        ("python -m benchmarks.scan", parsed("minutes to hours each, on an idle machine")),
        ("python -m benchmarks.faults", parsed("minutes; tests/benchmarks/test_faults.py runs its parts")),
        ("python -m benchmarks.hostile", parsed("minutes; tests/benchmarks/test_hostile.py runs it, small")),
        ("OMP_NUM_THREADS=1 .venv/bin/mutmut", shown("an hour; mutmut is installed by hand")),
    ],
    "docs/captions.md": [
        ('{"caption": "A black cat', parse_each_line),
        ("captioners:", read_by(CurateConfig)),
        ("pip install vllm", shown("another project's server, for a GPU")),
        ("ollama pull", shown("another project's server")),
        ("captioners:", read_by(CurateConfig)),
    ],
    "docs/cluster.md": [
        ("pip install -c constraints.txt", shown("needs a network; test_the_extras_that_are_named_exist checks it")),
        ("export AWS_ENDPOINT_URL", parsed("starts a cluster that outlives the shell")),
        ("clipmill curate s3://", parsed("needs a cluster; tests/pipelines/test_curate.py has S3 and Ray")),
        ("# limits.yaml", defaults),
        ("hf download", parsed("needs a network")),
        ("clip_embedder: {model: /models/vit-l-14-openai}", read_by(CurateConfig)),
    ],
    "docs/duplicates.md": [
        ("clipmill duplicates DATASET", usage),
        ("duplicate_rank: {max: 0}", rule),
        ("SELECT round(duplicate_cosine", sql),
    ],
    "docs/choosing-thresholds.md": [
        ("clipmill report DATASET", parsed("--open starts a browser")),
        ("clipmill select DATASET", parsed("rules.yaml is copied from the page; tests/curation/report does so")),
        ("clipmill inspect VIDEO", parsed("VIDEO is any video; tests/pipelines/test_inspect.py writes the signals")),
        ("clipmill select DATASET", parsed("marks.json is a download of the page: test_marks.py")),
        ("from pathlib import Path", dataset_python),
        ("import duckdb", dataset_python),
        ("import duckdb", shown("it displays pictures in a notebook")),
        ("import duckdb", shown("FiftyOne is not installed")),
    ],
    "docs/format.md": [
        ("DATASET/", tree("DATASET")),
        *[("from pathlib import Path", dataset_python)] * 2,
        *[("import duckdb", dataset_python)] * 3,
        ("plan.json", tree("DATASET/shards/svd-paper")),
    ],
    "docs/micro-conditioning.md": [("import duckdb", dataset_python)],
    "docs/model.md": [
        ("x_BTCHW", shown("a drawing")),
        ("import torch", python(
            Instead('"cuda"', '"cpu"', NO_GPU),
            Instead('"svd")', '"svd", **SMALL)', TINY),
            Instead("import torch\n", "import torch\nfrom tests.test_pasted import SMALL\n", TINY),
        )),
    ],
    "docs/reference/clipmill.md": [
        ("import clipmill", python(
            Instead('"dataset")\n    selection', '"dataset", config=demo_config())\n    selection', NO_WEIGHTS),
            Instead("import clipmill", "from demo.model import demo_config\nimport clipmill", NO_WEIGHTS),
        )),
    ],
    "docs/quickstart.md": [
        ("make setup", made("installs; the demo is what the folder for these tests was prepared with")),
        ("clip_embedder: {model: demo/clip}", saved("demo.yaml", lambda path: CurateConfig.from_file(str(path)))),
        ("clipmill inspect demo-output/footage/001-ntsc-vp9.webm", shell(codes=(0, 3))),
        ("vp9 yuv420p in matroska", prints),
        ("sources", prints),
        ("selection svd-paper: 14 of 93 clips", prints),
        ("clipmill train --recipe demo-output/recipe.yaml", shell()),
    ],
    "docs/sampling.md": [
        ("clipmill sample CHECKPOINT", sample_each),
        ("from pathlib import Path", python(
            Instead('"cuda"', '"cpu"', NO_GPU),
            Instead("torch.bfloat16", "torch.float32", NO_GPU),
            Instead("width_px=1024, height_px=576", "width_px=96, height_px=64", TINY),
        )),
        ("clipmill.json, model_index.json", tree("demo-output/runs/3-tiny-image-to-video/model")),
        ("from svd.checkpoint import load_model", python()),
    ],
    "docs/training.md": [
        ("clipmill train --stage tiny-video", train_each),
        ("RUN/stage.json", tree("RUN")),
        ("model: {checkpointing: true", caption_shares),
        ("init: sd21", recipe),
        ("torchrun", parsed("8 GPUs and 64 workers; tests/pipelines/test_train.py runs both with few, on CPUs")),
    ],
}  # fmt: skip
"""Page -> for each of its blocks, in order, how its first line begins and what is done with it."""

ABSENT = {"RUN/lora.safetensors": "only a LoRA stage leaves it"}

ELSEWHERE = {"docs/adding-a-scorer.md": "has a test of its own, in a copy of the packages"}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, finished_demo: FinishedDemo) -> Path:
    """What a reader of the README has after the demo: `demo-output/` with footage, dataset, recipe and models."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(finished_demo.folder, folder / "demo-output")
    (folder / "demo").symlink_to(ROOT / "demo")
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A reader whose folder has what the pages speak of: the demo, a DATASET, `videos` and `footage`, pictures."""
    shutil.copytree(prepared, tmp_path, symlinks=True, dirs_exist_ok=True)
    (tmp_path / "DATASET").symlink_to("demo-output/rendered")
    for name in ("videos", "footage"):
        (tmp_path / name).mkdir()
        for file in sorted((prepared / "demo-output/footage").glob("00[0-4]-*")):
            shutil.copy(file, tmp_path / name)
    for name in ("first.png", "a.png", "b.png", "chair.png"):
        shutil.copy(tmp_path / "demo-output/sample-1-first.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_AS_PASTED)
def test_a_page_can_be_pasted_block_by_block(page: str, reader: Reader):
    if page in ("docs/model.md", "docs/sampling.md"):
        save_original(tiny_model("image-to-video"), reader.folder / "svd.safetensors")
    blocks, ways = blocks_of(page), PAGES_AS_PASTED[page]
    for block, (begins, paste) in zip(blocks, ways, strict=True):
        assert block.first_line.startswith(begins), f"{block}: the test expects {begins!r} here"
        try:
            paste(reader, block)
        except Exception as error:
            error.add_note(str(block))
            raise


def test_every_block_is_pasted_or_listed_with_a_reason():
    for page in PAGES:
        blocks = blocks_of(page)
        if page in ELSEWHERE:
            continue
        ways = PAGES_AS_PASTED.get(page, [])
        for block, (begins, _) in zip(blocks, ways, strict=False):
            assert block.first_line.startswith(begins), f"{block} is neither pasted nor listed; expected {begins!r}"
        assert len(blocks) == len(ways), f"{page}: {len(blocks)} blocks, of which {len(ways)} are pasted or listed"
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks), f"{page}: a fence is not closed or indented"


def test_files_that_pages_name_are_there():
    roots = "clipmill|curation|svd|training|pipelines|demo|footage|tests|benchmarks|docs"
    for page in PAGES:
        for name in re.findall(
            rf"(?<![\w/.-])((?:{roots})/[\w/.-]*\.(?:py|md|yaml|json|txt))\b", (ROOT / page).read_text()
        ):
            if page not in ELSEWHERE or "brightness" not in name:
                assert (ROOT / name).exists() or "NAME" in name, f"{page}: {name}"


def test_commands_and_options_that_the_docs_list_are_all_there():
    from typer.main import get_command

    from pipelines.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `clipmill ([\w-]+)(.*)$", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    assert {name for name, _ in rows} == set(commands)
    for name, row in rows:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        named = set(re.findall(r"--[a-z][a-z-]*", row))
        assert named <= options, f"clipmill {name}: {named - options}"


def test_the_extras_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\.\[([\w,]+)\]'", "".join((ROOT / page).read_text() for page in PAGES))
    assert named
    assert {name for group in named for name in group.split(",")} <= set(extras)


def test_the_page_on_scorers_has_every_member_of_the_protocol():
    page = (ROOT / "docs/adding-a-scorer.md").read_text()
    members = [name for name in {**Scorer.__annotations__, **vars(Scorer)} if not name.startswith("_")]
    assert set(re.findall(r"^\| `(\w+)(?:\(\w+\))?` \|", page, flags=re.MULTILINE)) >= set(members)
    scorer = next(block for block in blocks_of("docs/adding-a-scorer.md") if "class Brightness:" in block.text)
    for member in members:
        assert re.search(rf"^    (def )?{member}\b", scorer.text, flags=re.MULTILINE), member


@pytest.mark.slow
def test_the_scorer_of_its_page_passes_its_test_and_scores_in_a_run(prepared: Path, tmp_path: Path):
    """All of docs/adding-a-scorer.md, in a copy of the packages, whose commands are processes of their own."""
    names = ("module", "columns", "registry", "field", "test", "check", "inspect", "funnel", "script", "selecting")
    page = blocks_of("docs/adding-a-scorer.md")
    blocks = dict(zip(names, page, strict=True))
    copy, folder = tmp_path / "copy", tmp_path / "work"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(prepared / "demo-output", folder / "demo-output")
    (copy / "curation/scores/brightness.py").write_text(blocks["module"].text)
    (copy / "tests/curation/test_brightness.py").write_text(blocks["test"].text)
    imported = "from curation.scores.brightness import Brightness"
    registry = copy / "curation/scores/registry.py"
    text, changed = re.subn(r"^SCORERS: .*?^\)\n", blocks["registry"].text, registry.read_text(), flags=re.S | re.M)
    assert changed == 1
    registry.write_text(_with_import(text, imported, after="from curation.scores.base"))
    columns = copy / "curation/scores/columns.py"
    text, changed = re.subn(r"^SCORE_COLUMNS: .*?^\)\n", blocks["columns"].text, columns.read_text(), flags=re.S | re.M)
    assert changed == 1
    columns.write_text(text)
    config = copy / "pipelines/config.py"
    before = "    duplicates: DuplicatesConfig"
    text = config.read_text().replace(before, blocks["field"].text + before, 1)
    config.write_text(_with_import(text, f"{imported}Config", after="from curation.scores.aesthetics"))

    environment = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    developer = Reader(copy, in_process=False, environment=environment)
    check = "ruff check . && ruff format --check ."
    developer.paste(Instead("make check", check, "make would install into the copy").applied(blocks["check"].text))
    assert "`brightness`" in (copy / "docs/format.md").read_text()

    user = Reader(folder, in_process=False, environment=environment)
    ((command, output),) = session(blocks["inspect"].text)
    lines = [line.split() for line in user.paste(command).splitlines() if line.endswith("None")]
    assert lines
    assert all(0 < float(brightness) < 1 for _, brightness, _ in lines)
    assert output
    user.paste("clipmill curate demo-output/footage/00[0-3]* --out dataset --without similarity,aesthetic --num-cpus 1")
    user.write("bright.yaml", "rules: {brightness: {min: 0.2, drop_highest: 5%}}\n")
    assert not is_printed(blocks["funnel"].text, user.paste("clipmill select dataset --config bright.yaml"))
    user.write("add_contrast.py", blocks["script"].text)
    for command, output in session(blocks["selecting"].text):
        if command.startswith("cat "):
            user.write(command.removeprefix("cat "), output)
            continue
        assert not is_printed(re.sub(r".*clips\n", "", output, count=1), user.paste(command))
    with Dataset(str(folder / "dataset")).connect() as connection:
        scored = connection.execute("SELECT count(brightness), count(contrast), count(*) FROM joined").fetchone()
    assert scored is not None
    assert scored[0] == scored[1] == scored[2] > 0


def _with_import(text: str, line: str, *, after: str) -> str:
    return re.sub(rf"^({re.escape(after)}.*\n)", rf"\1{line}\n", text, count=1, flags=re.MULTILINE)
