"""What a recipe may say, and what is said of one that says something else."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from clipmill.errors import UserError
from pipelines.cli import app
from pipelines.recipe import read_recipe, train_recipe

GOOD = {"stage": "tiny-image", "data": "shards"}


def recipe(folder: Path, content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_paths_are_seen_from_the_file_and_settings_laid_over_the_preset(tmp_path: Path) -> None:
    joint = {"stage": "tiny-video", "data": "/absolute", "images": "pictures", "name": "my.video-1",
             "set": {"run": {"steps": 3, "image_share": 0.5}}}  # fmt: skip
    read = read_recipe(recipe(tmp_path, {"init": "a/model", "stages": [GOOD, joint]}))
    assert read.init == tmp_path / "a/model"
    assert [entry.folder for entry in read.stages] == ["1-tiny-image", "2-my.video-1"]
    assert [entry.data for entry in read.stages] == [str(tmp_path / "shards"), "/absolute"]
    assert [entry.images for entry in read.stages] == [None, str(tmp_path / "pictures")]
    assert [entry.stage.run.steps for entry in read.stages] == [200, 3]
    absent = {**GOOD, "images": None, "set": None, "name": None}
    assert read_recipe(recipe(tmp_path, {"stages": [absent]})).stages[0].folder == "1-tiny-image"


@pytest.mark.parametrize(
    "name", ["a/../../../x", "..", "../x", "/x", "", " ", "a b", "-x", ".x", "a\n", "x" * 101, "a\\b"]
)
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "runs"
    path = recipe(tmp_path, {"stages": [{**GOOD, "name": name}]})
    if not name:
        assert read_recipe(path).stages[0].folder == "1-tiny-image"
        return
    with pytest.raises(UserError, match="expected a name of letters, digits"):
        next(train_recipe(path, out))
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "expected a mapping"),
        ("{", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("stages: &a [*a]", "not valid YAML"),
        ({}, "expected the keys 'stages'"),
        ({"stages": []}, "expected the keys 'stages'"),
        ({"stages": {"a": 1}}, "expected the keys 'stages'"),
        ({"stages": [GOOD], "inti": "x"}, "expected the keys 'stages'.*got stages, inti|got inti, stages"),
        ({"stages": [GOOD], 5: "x"}, "expected the keys 'stages'"),
        ({"stages": [GOOD], "init": 5}, "optionally, 'init'"),
        ({"stages": ["a"]}, "stage 1: expected the keys 'stage' and 'data'"),
        ({"stages": [{"stage": "tiny-image"}]}, "stage 1: expected the keys 'stage' and 'data'"),
        ({"stages": [{**GOOD, "sett": {}}]}, "stage 1: unknown key 'sett'. Did you mean 'set'"),
        ({"stages": [{**GOOD, 5: {}}]}, "stage 1: unknown key '5'"),
        ({"stages": [{**GOOD, "stage": ["a"]}]}, "stage 1: expected 'stage' to be text, got"),
        ({"stages": [{**GOOD, "data": 5}]}, "stage 1: expected 'data' to be text, got 5"),
        ({"stages": [GOOD, {**GOOD, "images": {}}]}, "stage 2: expected 'images' to be text"),
        ({"stages": [{**GOOD, "name": 5}]}, "stage 1: expected 'name' to be text"),
        ({"stages": [{**GOOD, "set": [1]}]}, "stage 1: expected 'set' to be settings by group"),
        ({"stages": [{**GOOD, "set": {"run": {"stpes": 1}}}]}, "Did you mean 'steps'"),
        ({"stages": [{**GOOD, "stage": "tiny-imgae"}]}, "Did you mean 'tiny-image'"),
    ],
)
def test_anything_else_is_a_sentence_that_names_the_file(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(recipe(tmp_path, content))
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.slow
def test_a_dry_run_estimates_every_stage_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [GOOD, {"stage": "tiny-video", "data": "shards", "set": {"run": {"steps": 7}}}]
    path = recipe(tmp_path, {"stages": stages})
    result = CliRunner().invoke(app, ["train", "--recipe", str(path), "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    for text in ("1-tiny-image: Stage I b", "2-tiny-video: Stage II a", "200 steps on 1 H100", "7 steps on 1 H100"):
        assert text in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]
