"""Versions of folders: the current one passes, others are rejected with what to do."""

from typing import Any

import pytest

from clipmill.errors import UserError
from clipmill.formats import DATASET, LATENTS, RUN, SHARDS, Format

FORMATS = (DATASET, SHARDS, LATENTS, RUN)


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.kind)
def test_a_folder_of_the_current_version_passes(known: Format) -> None:
    description = known.describe({"a": 1}, more=2)
    known.check(description, "here")
    assert (description["config"], description["more"]) == ({"a": 1}, 2)


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.kind)
@pytest.mark.parametrize("difference", [-1, 1])
def test_another_version_is_rejected_with_what_to_do(known: Format, difference: int) -> None:
    description = known.describe() | {"format_version": known.version + difference}
    with pytest.raises(UserError) as raised:
        known.check(description, "here")
    advice = known.if_older if difference < 0 else "upgrade clipmill"
    assert str(raised.value) == (
        f"here has {known.kind} format {known.version + difference}, this clipmill reads format {known.version}: "
        f"{advice}."
    )


def test_a_folder_of_another_kind_is_rejected() -> None:
    with pytest.raises(UserError, match="here has the format 'clipmill latents', expected 'clipmill shards': choose"):
        SHARDS.check(LATENTS.describe(), "here")


@pytest.mark.parametrize("version", [None, True, 2.0, [2]])
def test_values_of_other_types_are_damage(version: Any) -> None:
    with pytest.raises(TypeError, match="expected format_version to be an integer"):
        SHARDS.check(SHARDS.describe() | {"format_version": version}, "here")
    with pytest.raises(TypeError, match="expected format to be a string"):
        SHARDS.check(SHARDS.describe() | {"format": version}, "here")
    with pytest.raises(KeyError):
        SHARDS.check({"format": "clipmill shards"}, "here")
