"""docs/adding-a-scorer.md: its scorer passes its own test and scores in a run."""

import re
import shutil
from pathlib import Path

import pytest

from curation.dataset.tables import Dataset
from curation.scores.base import Scorer
from tests.docs import (
    ROOT,
    Instead,
    Reader,
    blocks_of,
    is_printed,
    session,
)

PACKAGES = ("clipmill", "curation", "svd", "training", "pipelines", "demo", "footage", "tests", "docs", "benchmarks")


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
