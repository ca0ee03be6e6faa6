"""Scorers by name: clipmill's own, and plug-ins, which need no line here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from clipmill.config import Config, unknown_name
from clipmill.errors import UserError
from clipmill.plugins import Plugin, find_plugin
from curation.scores.base import Scorer

GROUP = "clipmill.scorers"
"""Entry points of packages with scorers."""

SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "similarity": "curation.scores.similarity:Similarity",
        "aesthetic": "curation.scores.aesthetics:Aesthetic",
        "text_area": "curation.scores.text:TextArea",
    }
)
"""Clipmill's own, whose columns are those of the clips table."""

ON_REQUEST: Mapping[str, str] = MappingProxyType({"picture_hash": "curation.scores.picture_hash:PictureHash"})
"""Clipmill's own, which have tables of their own, as plug-ins have."""


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer and its settings, as workers make it. Hashable, and can be pickled."""

    plugin: Plugin
    settings: str = "{}"
    """JSON, complete and checked."""

    def __call__(self) -> Scorer:
        """The scorer, not loaded."""
        kind = self.plugin.load()
        made: Scorer = kind(kind.Config.model_validate_json(self.settings))
        return made

    def values(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dict(json.loads(self.settings))


def scorer_spec(asked: str, settings: Config | Mapping[str, Any] | None = None) -> ScorerSpec:
    """Find a scorer by name or address and check its settings. Raises UserError."""
    return plugin_spec(asked, settings, group=GROUP, built_in={**SCORERS, **ON_REQUEST}, base=Scorer)


def plugin_spec(
    asked: str,
    settings: Config | Mapping[str, Any] | None,
    *,
    group: str,
    built_in: Mapping[str, str],
    base: type[Scorer],
) -> ScorerSpec:
    """Find a subclass of `base` and check its settings. Raises UserError."""
    plugin = find_plugin(asked, group=group, built_in=built_in)
    kind, what = plugin.load(), group.rpartition(".")[2].removesuffix("s")
    _check(kind, asked, base, what)
    if built_in.get(kind.name, plugin.target) != plugin.target:
        raise UserError(f"{asked}: the name {kind.name!r} is taken by a {what} of clipmill: choose another one")
    if ":" not in asked and kind.name != asked:
        raise UserError(f"the entry point {asked!r} is a {what} named {kind.name!r}: give both the same name")
    if not isinstance(settings, Config):
        settings = kind.Config.from_values(settings or {}, origin=f"{what}s.{asked}")
    assert isinstance(settings, Config)
    _check_columns(getattr(kind(settings), "columns", None), asked)
    return ScorerSpec(plugin, settings.model_dump_json())


def _check_columns(columns: object, asked: str) -> None:
    if not isinstance(columns, tuple) or not columns or not all(isinstance(each, pa.Field) for each in columns):
        raise UserError(f"{asked}: expected `columns` to be a tuple of clipmill.column(...), got {columns!r}")


def _check(kind: type, asked: str, base: type[Scorer], what: str) -> None:
    """Raise UserError for a class that is not a complete scorer or captioner."""
    if not issubclass(kind, base):
        raise UserError(f"{asked}: expected a subclass of clipmill.{base.__name__}, got {kind.__qualname__}")
    if kind.folder != base.folder:
        raise UserError(f"{asked}: {kind.__qualname__} is not a {what}, but has {kind.folder}: see `clipmill --help`")
    if not isinstance(getattr(kind, "name", None), str):
        raise UserError(f"{asked}: expected a text as `name` of the {what}, got {getattr(kind, 'name', None)!r}")
    version = kind.version
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{asked}: expected an integer from 1 as `version` of the {what}, got {version!r}")
    if not issubclass(kind.Config, Config):
        raise UserError(f"{asked}: expected `Config` to be a subclass of clipmill.Config, got {kind.Config!r}")
    if unknown := [name for name in kind.may_change if name not in kind.Config.model_fields]:
        raise UserError(
            f"{asked}: {unknown_name('setting in `may_change`', unknown[0], list(kind.Config.model_fields))}"
        )
