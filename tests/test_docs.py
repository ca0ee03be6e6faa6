"""The documentation: links as GitHub follows them, the site's hooks, and checks that say the same everywhere."""

import re
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path):
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_site_has_pages_of_the_root_and_sets_lists_apart():
    pytest.importorskip("mkdocs")
    hooks = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "hooks.py")))

    def shown(markdown: str, page: str) -> str:
        return hooks.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)))

    assert shown("[a](docs/x.md#y) [b](CONTRIBUTING.md)", "index.md") == "[a](x.md#y) [b](contributing.md)"
    assert shown("[a](x.md) [b](../CONTRIBUTING.md#c)", "y.md") == "[a](x.md) [b](contributing.md#c)"
    assert shown("Text:\n- one\n  more\n- two\nText", "y.md") == "Text:\n\n- one\n  more\n- two\nText"
    assert shown("# Title\n| a |\n| - |", "y.md") == "# Title\n| a |\n| - |"
    assert shown("```\nText\n- [a](docs/x.md)\n```", "index.md") == "```\nText\n- [a](docs/x.md)\n```"


def test_the_hooks_of_pre_commit_are_the_steps_of_make_check():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    steps = [step for entry in entries for step in (made(*entry.split()[1:]) if entry.startswith("make ") else [entry])]
    assert sorted(steps) == sorted(made("check"))


def made(*targets: str) -> list[str]:
    """Commands of a target of the Makefile, apart from those that install packages."""
    installed = ("-o", "setup", "-o", "curation/report/template/node_modules/.package-lock.json")
    steps = subprocess.run(["make", "-n", *installed, *targets], cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in steps.stdout.splitlines() if not line.startswith("make[")]


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml", "config.yml"])
def test_issue_templates_are_forms(name: str):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text())
    ids = [field["id"] for field in form.get("body", [])]
    assert len(set(ids)) == len(ids)
    assert name == "config.yml" or {"name", "description", "body"} <= set(form)


def test_decisions_are_numbered_in_order():
    numbers = re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert numbers == [str(number + 1) for number in range(len(numbers))]
