"""Stages that fit together, and what is said of those that do not."""

import pytest

from clipmill.errors import UserError
from clipmill.pipeline import Stage, check_stages, loaded


def stage(name: str, needs: str = "", gives: str = "") -> Stage:
    return Stage(name=name, needs=tuple(needs.split()), gives=tuple(gives.split()), load=lambda device: list)


SCAN = stage("scan", "source", "thumbnails captions")
CLIP = stage("clip", "thumbnails captions", "embeddings")
AESTHETIC = stage("aesthetic", "embeddings", "aesthetic")


def test_each_stage_needs_what_is_given_or_what_an_earlier_stage_gives():
    check_stages([SCAN, CLIP, AESTHETIC], given=["source"])
    check_stages([AESTHETIC], given=["embeddings"])


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            [SCAN, AESTHETIC, CLIP],
            "stage aesthetic needs 'embeddings', which no stage before it gives: clip gives it, so put clip before "
            "aesthetic",
        ),
        (
            [SCAN, CLIP, stage("mine", "embedings", "mine")],
            "stage mine needs 'embedings', which no stage before it gives, nor any other: unknown column 'embedings'. "
            "Did you mean 'embeddings'? Known: captions, embeddings, source, thumbnails.",
        ),
    ],
)
def test_what_is_missing_is_one_sentence_with_who_gives_it(stages: list[Stage], sentence: str):
    with pytest.raises(UserError) as raised:
        check_stages(stages, ["source"])
    assert str(raised.value) == sentence


def test_a_stage_does_not_give_itself_what_it_needs():
    with pytest.raises(UserError, match=r"needs 'captions'.*Known: source"):
        check_stages([stage("merged", "captions", "captions")], ["source"])


def test_stages_of_one_worker_see_each_piece_one_after_the_other():
    seen: list[tuple[str, list[int]]] = []

    def noted(name: str) -> Stage:
        def load(device: str):
            return lambda piece: seen.append((f"{name} on {device}", piece))

        return Stage(name=name, needs=(), gives=(), load=load, divide=lambda items: (items[:2], items[2:]))

    items = [1, 2, 3]
    assert loaded([noted("a"), noted("b")], "cuda")(items) is items
    assert seen == [("a on cuda", [1, 2]), ("b on cuda", [1, 2]), ("a on cuda", [3]), ("b on cuda", [3])]


def test_without_a_division_a_stage_answers_with_other_items():
    double = Stage(name="double", needs=(), gives=(), load=lambda device: lambda items: [2 * i for i in items])
    total = Stage(name="total", needs=(), gives=(), load=lambda device: lambda items: [sum(items)])
    assert loaded([double, total], "cpu")([1, 2, 3]) == [12]
