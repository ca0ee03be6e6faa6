"""The settings reference: complete, explained, and what the classes say today."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from clipmill.config import Config
from pipelines.config import CurateConfig
from pipelines.settings import CHAPTERS, Chapter, groups, meanings, page
from training.stages import Stage

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


class Base(Config):
    length_s: float = Field(2.0, gt=0, le=10)
    """How long it is,
    in all."""


class Inner(Config):
    kind: Literal["a", "b"] = "a"


class Outer(Base):
    inner: Inner = Field(default_factory=Inner)
    maybe: Inner | None = None
    """Not there unless asked for."""
    size_bytes: int = 3 << 20
    text: str = "x" * 80
    shares: dict[str, float] = Field(default_factory=dict)
    needed: str
    pair: tuple[float, float] = (0.9, 1e-8)
    steps: int | None = None


@pytest.mark.slow
def test_every_key_has_a_meaning():
    silent = [s.key for chapter in CHAPTERS for group in groups(chapter) for s in group.settings if not s.meaning]
    assert not silent, "add a docstring under these fields, then run `python -m pipelines.settings docs/settings.md`"


@pytest.mark.slow
def test_the_page_is_what_the_classes_say():
    assert PAGE.read_text() == page(), "run `python -m pipelines.settings docs/settings.md`"


@pytest.mark.parametrize(
    ("command", "values"),
    [("curate", CurateConfig().model_dump()), ("train", Stage.preset("image-to-video").model_dump(mode="json"))],
)
def test_no_key_of_a_saved_configuration_is_missing(command: str, values: Mapping[str, Any]):
    (chapter,) = [chapter for chapter in CHAPTERS if chapter.command == command]
    listed = {setting.key for group in groups(chapter) for setting in group.settings}
    assert listed.issuperset(leaf for leaf in leaves(values) if not leaf.startswith("model.overrides."))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and name != "captions":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_types_bounds_units_and_defaults_are_read_off_the_class():
    settings_of = {g.title: g.settings for g in groups(Chapter(command="c", title="", summary="", config=Outer))}
    assert list(settings_of) == ["c: top level", "c: inner", "c: maybe"]
    length, maybe, size, text, shares, needed, pair, steps = settings_of["c: top level"]
    assert (length.type, length.default, length.unit) == ("number, > 0, ≤ 10", "`2`", "s")
    assert length.meaning == "How long it is, in all."
    assert (maybe.type, maybe.default, maybe.meaning) == ("group or null", "`null`", "Not there unless asked for.")
    assert (size.type, size.default, size.unit) == ("integer", "`3145728` (3 MiB)", "bytes")
    assert (text.default, text.long_default) == ("see below", "x" * 80)
    assert (shares.type, shares.default) == ("mapping", "`{}`")
    assert (needed.default, needed.type) == ("required", "text")
    assert (pair.default, pair.type) == ("`[0.9, 1e-08]`", "list of 2: number")
    assert (steps.default, steps.type, steps.unit) == ("`null`", "integer or null", "steps")
    (kind,) = settings_of["c: maybe"]
    assert (kind.key, kind.type, kind.default, kind.meaning) == ("maybe.kind", "`a`, `b`", '`"a"`', "")


def test_a_docstring_of_a_subclass_comes_before_that_of_its_base():
    class Child(Base):
        length_s: float = 1.0
        """Another."""

    assert meanings(Child) == {"length_s": "Another."}
