"""Which settings make a dataset another one, and which may change from run to run."""

from pathlib import Path
from typing import Any

import pytest

from clipmill.resume import MAY_CHANGE, deciding
from curation.shards.extract import ExtractionConfig
from curation.shards.write import ShardConfig
from pipelines.config import CurateConfig
from training.stages import Stage

ENDPOINT = {"base_url": "http://here/v1", "model": "m"}
ALL = {"captioners": {"coca": {}, "video": ENDPOINT, "merged": ENDPOINT}}


def described(**values: Any) -> dict[str, Any]:
    return CurateConfig.from_values(values, origin="test").described()


def names(values: dict[str, Any], path: str = "") -> set[str]:
    below = {f"{path}{name}" for name in values}
    return below.union(*(names(v, f"{path}{name}.") for name, v in values.items() if isinstance(v, dict)))


def test_every_setting_that_may_change_exists() -> None:
    known = names(Stage.preset("tiny-video").model_dump(mode="json")) | names(ShardConfig().model_dump())
    assert known | names(CurateConfig.from_values(ALL, origin="test").model_dump()) >= MAY_CHANGE


@pytest.mark.parametrize(
    "changes",
    [
        {"scan": {"limits": {"timeout_s": 7}}},
        {"duplicates": None},
        {"clip_embedder": {"batch_size": 1}},
        {"captioners": {**ALL["captioners"], "coca": {"batch_size": 1}}},
        {"captioners": {**ALL["captioners"], "video": ENDPOINT | {"base_url": "http://there/v1", "timeout_s": 1}}},
        {
            "captioners": {
                **ALL["captioners"],
                "merged": ENDPOINT | {"retries": 9, "api_key_env": "THE_API_KEY"},
            }
        },
    ],
)
def test_what_does_not_decide_the_rows_of_a_dataset_may_change(changes: dict[str, Any]) -> None:
    assert described(**ALL | changes) == described(**ALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"without": ["similarity"]},
        {"clip_embedder": {"model": "ViT-B-32"}},
        {"captioners": {**ALL["captioners"], "coca": {"max_tokens": 20}}},
        {"captioners": {**ALL["captioners"], "video": ENDPOINT | {"prompt": "Say something."}}},
        {"captioners": {"coca": {}}},
    ],
)
def test_what_decides_them_may_not(changes: dict[str, Any]) -> None:
    assert described(**ALL | changes) != described(**ALL)


def test_a_file_is_the_same_wherever_it_is_kept(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").touch()
    given = [
        {
            "clip_embedder": {"pretrained": path},
            "aesthetic": {"head": path},
            "captioners": {"coca": {"model": path, "pretrained": path}},
        }
        for path in (str(tmp_path / folder / "weights") for folder in ("a", "b"))
    ]
    first, second = (described(**values) for values in given)
    assert first == second
    assert first["captioners"]["coca"]["model"] == first["aesthetic"]["head"] == "weights"


def test_limits_are_no_part_of_what_shards_are() -> None:
    limited = ShardConfig.from_values({"extraction": {"limits": {"timeout_s": 5}}}, origin="test")
    assert deciding(limited.model_dump()) == deciding(ShardConfig().model_dump())
    assert deciding(ShardConfig(extraction=ExtractionConfig(crf=12)).model_dump()) != deciding(
        ShardConfig().model_dump()
    )
