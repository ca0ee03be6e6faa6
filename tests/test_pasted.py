"""Every fenced block of the documentation, pasted as a reader would: commands run, configurations are read, outputs
have the headings that are shown.

`PAGES_AS_PASTED` says for each block what is done with it, and holds all exceptions with their reasons. A block that is
not there fails the test of its page.
"""

import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from curation.selection.rules import Rules
from pipelines.config import CurateConfig
from svd.checkpoint import save_original
from tests.docs import (
    PAGES,
    ROOT,
    Instead,
    Reader,
    blocks_of,
)
from tests.pastes import (
    Paste,
    caption_shares,
    dataset_python,
    defaults,
    in_turn,
    made,
    notebook,
    parse_each_line,
    parsed,
    prints,
    python,
    read_by,
    recipe,
    rule,
    rules_file,
    sample_each,
    saved,
    shell,
    shown,
    sql,
    train_each,
    transcript,
    tree,
    usage,
    write_demo_yaml,
    write_takedown,
)
from tests.svd.models import tiny_model

NO_WEIGHTS = "the weights of ViT-L-14 have to be fetched: the demo's take their place"


NO_GPU = "there is no GPU"

SELECT = "clipmill select DATASET --config"


TINY = "the released network has 1.5 billion parameters: a small one of the same kind takes its place"


CURATE_SMALL = Instead("--out dataset", "--out dataset --config demo.yaml", NO_WEIGHTS)


WITHOUT_SCORES = Instead("--out", "--without similarity,aesthetic,text_area --out", NO_WEIGHTS)


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
    "docs/adding-a-scorer.md": [
        ('"""Brightness', saved("brightness.py")),
        ("$ clipmill score", transcript),
        ("# exact.yaml", saved("exact.yaml")),
        ("$ clipmill score", transcript),
        ("[project.entry-points", shown("metadata of a package of the reader")),
        ('"""Add the score', python()),
    ],
    "docs/captions.md": [
        ('{"caption": "A black cat', parse_each_line),
        ("$ clipmill caption", parsed("needs an endpoint; tests/pipelines/test_caption.py has one")),
        ("captioners:", read_by(CurateConfig)),
        ("captioners:", read_by(CurateConfig)),
        ("pip install vllm", shown("another project's server, for a GPU")),
        ("ollama pull", shown("another project's server")),
        ("captioners:", read_by(CurateConfig)),
        ('"""Length', saved("length.py")),
        ("$ clipmill caption", transcript),
    ],
    "docs/cluster.md": [
        ("pip install -c constraints.txt", shown("needs a network; test_the_extras_that_are_named_exist checks it")),
        ("export AWS_ENDPOINT_URL", parsed("starts a cluster that outlives the shell")),
        ("clipmill plan s3://", parsed("needs a bucket; tests/pipelines/test_plan.py plans for files")),
        ("clipmill status s3://", parsed("needs a bucket; tests/pipelines/test_costs.py reads the costs of a run")),
        ("clipmill doctor", parsed("needs a cluster; tests/pipelines/doctor has one of two nodes")),
        ("clipmill curate s3://", parsed("needs a cluster; tests/pipelines/test_curate.py has S3 and Ray")),
        ("# limits.yaml", defaults),
        ("hf download", parsed("needs a network")),
        ("clip_embedder: {model: /models/vit-l-14-openai}", read_by(CurateConfig)),
    ],
    "docs/duplicates.md": [
        ("clipmill duplicates DATASET", usage),
        ("duplicate_rank: {max: 0}", rule),
        ("clipmill duplicates DATASET --against", in_turn(
            lambda r, _: shutil.copytree(r.folder / "DATASET", r.folder / "OTHER") and None, shell()
        )),
        ("SELECT round(duplicate_cosine", sql),
    ],
    "docs/search.md": [
        ("clipmill search DATASET", parsed(f"{NO_WEIGHTS}; tests/pipelines/test_search.py searches")),
        ("name: dogs", read_by(Rules)),
        ("clipmill cluster DATASET", usage),
        ("name: balanced", in_turn(saved("balanced.yaml"), lambda r, _: r.paste(f"{SELECT} balanced.yaml") and None)),
        ("name: best-of-each", in_turn(saved("best.yaml"), lambda r, _: r.paste(f"{SELECT} best.yaml") and None)),
    ],
    "docs/choosing-thresholds.md": [
        ("clipmill report DATASET", parsed("--open starts a browser")),
        ("clipmill select DATASET", parsed("rules.yaml is copied from the page; tests/curation/report does so")),
        ("clipmill inspect VIDEO", parsed("VIDEO is any video; tests/pipelines/test_inspect.py writes the signals")),
        ("clipmill select DATASET", parsed("marks.json is a download of the page: test_marks.py")),
        ("from pathlib import Path", dataset_python),
        ("import duckdb", dataset_python),
        ("import duckdb", notebook),
        ("import duckdb", shown("FiftyOne brings a MongoDB server")),
    ],
    "docs/format.md": [
        ("DATASET/", tree("DATASET")),
        *[("from pathlib import Path", dataset_python)] * 2,
        *[("import duckdb", dataset_python)] * 3,
        ("import clipmill", shown("the demo's model is in another place; tests/pipelines/test_embed.py calls both")),
        ("plan.json", tree("DATASET/shards/svd-paper")),
    ],
    "docs/inputs.md": [
        ("path,caption,license,views", saved("list.csv")),
        ("clipmill curate list.csv", shell(WITHOUT_SCORES)),
        ("list.csv: addresses from", prints),
        ("inputs: {archives_in_lists", read_by(CurateConfig)),
        ("name: free", rules_file("free.yaml")),
        ("clipmill inspect videos.zip", in_turn(
            lambda r, _: r.paste("python -m zipfile -c videos.zip videos/00[01]-*.[mw][pe]*") and None,
            shell(Instead("inspect", "inspect --without similarity,aesthetic,text_area", NO_WEIGHTS)),
        )),
    ],
    "docs/micro-conditioning.md": [("import duckdb", dataset_python)],
    "docs/model.md": [
        ("x_BTCHW", shown("a drawing")),
        ("import torch", python(
            Instead('"cuda"', '"cpu"', NO_GPU),
            Instead('"svd")', '"svd", **SMALL)', TINY),
            Instead("import torch\n", "import torch\nfrom tests.pastes import SMALL\n", TINY),
        )),
    ],
    "docs/publishing.md": [
        ("clipmill publish dataset", parsed("tests/pipelines/test_publish.py publishes in every layout")),
        ("hf upload", parsed("needs a network and an account")),
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
        ("selection svd-paper: 15 of 91 clips", prints),
        ("clipmill train --recipe demo-output/recipe.yaml", shell()),
    ],
    "docs/removal.md": [
        ("clipmill log DATASET", shell()),
        ("clipmill remove DATASET", in_turn(write_takedown, shell(
            Instead("license = 'CC-BY-NC'", "uri LIKE '%/003-%'", "the demo's footage comes without licences")
        ))),
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
        ("clipmill cache-latents --data s3", parsed("needs a bucket; tests/pipelines/test_stored_runs.py has one")),
    ],
}  # fmt: skip
"""Page -> for each of its blocks, in order, how its first line begins and what is done with it."""


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
    blocks, pastes = blocks_of(page), PAGES_AS_PASTED[page]
    for block, (begins, paste) in zip(blocks, pastes, strict=True):
        assert block.first_line.startswith(begins), f"{block}: the test expects {begins!r} here"
        try:
            paste(reader, block)
        except Exception as error:
            error.add_note(str(block))
            raise


def test_every_block_is_pasted_or_listed_with_a_reason():
    for page in PAGES:
        blocks = blocks_of(page)
        pastes = PAGES_AS_PASTED.get(page, [])
        for block, (begins, _) in zip(blocks, pastes, strict=False):
            assert block.first_line.startswith(begins), f"{block} is neither pasted nor listed; expected {begins!r}"
        assert len(blocks) == len(pastes), f"{page}: {len(blocks)} blocks, of which {len(pastes)} are pasted or listed"
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks), f"{page}: a fence is not closed or indented"


def test_files_that_pages_name_are_there():
    roots = "clipmill|curation|svd|training|pipelines|demo|footage|tests|benchmarks|docs"
    for page in PAGES:
        for name in re.findall(
            rf"(?<![\w/.-])((?:{roots})/[\w/.-]*\.(?:py|md|yaml|json|txt))\b", (ROOT / page).read_text()
        ):
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
