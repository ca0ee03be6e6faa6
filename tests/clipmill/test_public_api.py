"""`import clipmill`: every public name resolves, and nothing heavy is imported before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import clipmill
from curation.scores.registry import SCORERS
from pipelines.select import DEFAULT_PRESET

HEAVY = {"torch", "ray", "pandas", "av", "cv2", "numpy", "pyarrow", "duckdb", "yaml", "fsspec"}
COMMAND_LINE = {"clipmill", "pipelines", "typer", "rich"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_every_public_name_is_the_object_of_its_module():
    for name, module in clipmill._MODULES.items():
        assert getattr(clipmill, name) is getattr(import_module(module), name)
        assert name in dir(clipmill)


def test_type_checkers_see_the_names_that_are_loaded_on_first_use():
    tree = ast.parse(Path(clipmill.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        name.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert imported == clipmill._MODULES
    assert set(clipmill.__all__) == {*clipmill._MODULES, "__version__"}


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'clipmill' has no attribute 'curation_of'"):
        _ = clipmill.curation_of  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "loaded", "heavy"),
    [
        (("-c", "import clipmill; dir(clipmill)"), {"clipmill"}, HEAVY | {"pydantic", "typer", "rich"}),
        (("-m", "clipmill", "--help"), COMMAND_LINE, HEAVY | {"pydantic"}),
        (("-m", "clipmill", "curate", "--help"), COMMAND_LINE, HEAVY),
        (("-m", "clipmill", "train", "--help"), COMMAND_LINE, HEAVY),  # typer reads paths with pydantic
    ],
)
def test_importing_and_asking_for_help_load_nothing_heavy(arguments, loaded: set[str], heavy: set[str]):
    done = run("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert loaded <= imported
    assert not imported & heavy


def test_version_and_help_by_either_name_of_the_command():
    by_module, by_command = run("-m", "clipmill", "--version"), run("-m", "pipelines.cli", "--version")
    assert by_module.returncode == 0
    assert by_module.stdout == by_command.stdout == f"clipmill {clipmill.__version__}\n"


@pytest.mark.slow
def test_help_names_the_scores_and_the_preset_that_there_are():
    assert all(name in run("-m", "clipmill", "curate", "--help").stdout for name in SCORERS)
    assert DEFAULT_PRESET in run("-m", "clipmill", "select", "--help").stdout


def test_every_public_name_is_in_the_reference():
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "clipmill.md").read_text()
    assert [name for name in clipmill._MODULES if f"heading: clipmill.{name}," not in reference] == []


@pytest.mark.parametrize("package", ["clipmill", "curation", "pipelines", "svd", "training"])
def test_types_are_shipped_with_every_package_that_they_come_from(package: str):
    assert (Path(clipmill.__file__).parents[1] / package / "py.typed").is_file()
