"""What may change between a run and its resumption, and how a change is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipmill.errors import UserError
from clipmill.resume import check_same, differences, shortened
from training.contents import check_contents, digest, write_contents
from training.data_config import DataConfig
from training.stages import Stage, overlay

SHARDS = [("a.tar", 100, 5), ("b.tar", 200, 6), ("c.tar", 300, 7)]


def stage(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(overlay(Stage.preset("tiny-video"), changes).model_dump(mode="json")))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"max_broken_share": 0.5}},
        {"data": {"workers": 7, "prefetch": 9, "reader": "decord"}},
        {"model": {"checkpointing": True, "autoencoder": "moved/there"}},
        {"run": {"steps": 9999, "save_every": 1, "compile": True, "strategy": "ddp"}},
    ],
)
def test_what_decides_nothing_may_change(changes: dict[str, Any]) -> None:
    assert differences(stage(), stage(**changes)) == []


def test_long_values_that_begin_alike_differ() -> None:
    prompts = ("Describe the clip. " * 20 + end for end in ("In short.", "At length."))
    before, now = ({"captioners": {"video": {"prompt": prompt}}} for prompt in prompts)
    (difference,) = differences(before, now)
    assert difference.startswith("captioners.video.prompt: was ")


def test_what_decides_something_is_named_with_both_values() -> None:
    now = stage(optimizer={"lr": 0.5}, data={"captions": {"list": 1.0}}, model={"overrides": {"frames": 4}})
    assert differences(stage(), now) == [
        "data.captions.coca: was 0.5, now absent",
        "data.captions.list: was absent, now 1.0",
        "data.captions.merged: was 0.25, now absent",
        "data.captions.video: was 0.25, now absent",
        "model.overrides.frames: was 8, now 4",
        "optimizer.lr: was 0.0001, now 0.5",
    ]
    assert differences({"a": "x" * 100}, {"a": 1})[0] == f'a: was "{"x" * 59}..., now 1'
    names = ("optimizer.lr", "model.overrides", "data.captions")
    assert differences(stage(), now, ignored=names) == []


def test_a_setting_that_an_older_run_did_not_have_is_no_difference() -> None:
    before = stage()
    del before["data"]["seed"], before["conditioning_dropout"]
    now = stage(data={"seed": 5}, conditioning_dropout={"context": 0.9})
    assert differences(before, now, new_keys=True) == []
    assert "data.seed: was absent, now 5" in differences(before, now)
    changed = differences(stage(data={"seed": 4}), stage(data={"seed": 5}), new_keys=True)
    assert changed == ["data.seed: was 4, now 5"]
    captions = stage(data={"captions": {"list": 1.0}})
    assert "data.captions.list: was absent, now 1.0" in differences(stage(), captions, new_keys=True)


def test_latents_may_differ_by_the_same_list() -> None:
    """A plan of latents holds the settings of `data` alone."""
    before, now = (
        {"data": DataConfig(**each).model_dump(mode="json")} for each in ({}, {"workers": 0, "batch_size": 7})
    )
    assert differences(before, now, ignored=("data.batch_size",)) == []
    assert differences(before, now) == ["data.batch_size: was 1, now 7"]


def test_three_differences_are_named_and_the_rest_counted() -> None:
    assert shortened(list("abc")) == "a; b; c"
    assert shortened(list("abcde")) == "a; b; c; and 2 more"


def test_the_same_sentence_refuses_everything_that_was_started_otherwise() -> None:
    check_same("run", {"x": 1}, {"x": 1})
    sentence = r"^run was started with different settings \(x: was 1, now 2\): resume with the original ones, or go$"
    with pytest.raises(UserError, match=sentence):
        check_same("run", {"x": 1}, {"x": 2}, otherwise="go")


def test_equal_shards_pass_and_so_does_a_checkpoint_without_a_digest(tmp_path: Path) -> None:
    check_contents(tmp_path, digest(SHARDS), list(SHARDS))
    check_contents(tmp_path, None, SHARDS)
    assert len({digest(each) for each in (SHARDS, SHARDS[::-1], SHARDS[:2], [("a.tar", 100, 6), *SHARDS[1:]])}) == 4


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (SHARDS[:2], r"\(c.tar was removed\)"),
        ([*SHARDS, ("d.tar", 1, 1)], r"\(d.tar was added\)"),
        ([("a.tar", 101, 5), *SHARDS[1:]], r"\(a.tar had 5 samples in 100 bytes, now 5 in 101\)"),
        ([("x.tar", 1, 1)], r"\(a.tar was removed; b.tar was removed; c.tar was removed; and 1 more\)"),
        (SHARDS[::-1], r"\(names, sizes or their order differ\)"),
    ],
)
def test_other_shards_are_named(tmp_path: Path, now: list[tuple[str, int, int]], message: str) -> None:
    write_contents(tmp_path / "run", SHARDS)
    with pytest.raises(ValueError, match=rf"run was trained on different shards {message}: resume with the original"):
        check_contents(tmp_path / "run", digest(SHARDS), now)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    "content",
    [
        None, "", "{", "5", "[]", "[" * 100_000, "{}", '{"format_version": 1}', '{"format_version": 1, "shards": 5}',
        '{"format_version": 1, "shards": ["a.tar"]}', '{"format_version": 1, "shards": [{"name": "a.tar"}]}',
        '{"format_version": 1, "shards": [{"name": "a.tar", "samples": 1, "bytes": 1}]}',
    ],
)  # fmt: skip
def test_other_shards_are_noticed_where_the_list_is_damaged(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match="names, sizes or their order differ"):
        check_contents(tmp_path, digest(SHARDS), SHARDS[:1])
