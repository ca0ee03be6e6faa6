"""The settings reference: every key of every configuration class, with type, default, unit and meaning.

Types, bounds and defaults come from the classes, meanings from the docstrings under their fields.

python -m pipelines.settings docs/settings.md
"""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from curation.publish.plan import PublishConfig
from curation.selection.rules import Like, MaxPer, Rule, Rules
from curation.shards.write import ShardConfig
from pipelines.config import CurateConfig
from svd.config import UNetConfig
from training.stages import Stage

_UNITS = {
    "percent_per_s": "%/s",
    "per_s": "1/s",
    "s": "s",
    "fps": "frames/s",
    "px": "px",
    "pixels": "px",
    "bytes": "bytes",
    "db": "dB",
    "share": "share, 0 to 1",
    "tokens": "tokens",
    "frames": "frames",
    "lengths": "frames",
    "steps": "steps",
    "every": "steps",
    "levels": "8-bit levels",
}
"""Suffix of a name -> unit."""
_NOUNS = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
_LONGEST_DEFAULT = 60


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key. `meaning` is empty if its field has no docstring."""

    key: str
    """Dotted: its groups, then its name."""
    type: str
    default: str
    unit: str
    meaning: str
    long_default: str = ""
    """Default that is too long for the table."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The settings of one class."""

    title: str
    summary: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """Source of a command's settings."""

    command: str
    title: str
    summary: str
    config: type
    more: tuple[tuple[str, type], ...] = ()
    """Mappings whose values are settings of a class: (key with NAME for the mapping's keys, class)."""


CHAPTERS = (
    Chapter(
        command="curate",
        title="clipmill curate, inspect, duplicates",
        summary="A YAML file for `--config`. `clipmill duplicates` reads its group `duplicates`. The settings that "
        "determine the rows of a dataset are saved in its `dataset.json`: a dataset only grows with the settings it "
        "was created with.",
        config=CurateConfig,
    ),
    Chapter(
        command="select",
        title="clipmill select",
        summary="A YAML file for `--config`.",
        config=Rules,
        more=(("rules.COLUMN", Rule), ("like", Like), ("max_per.COLUMN", MaxPer)),
    ),
    Chapter(command="shard", title="clipmill shard", summary="A YAML file for `--config`.", config=ShardConfig),
    Chapter(
        command="publish",
        title="clipmill publish",
        summary="A YAML file for `--config`. Its group `shards` is that of `clipmill shard`. See "
        "[Publishing](publishing.md).",
        config=PublishConfig,
    ),
    Chapter(
        command="train",
        title="clipmill train, cache-latents",
        summary="A preset (`--stage`), then a YAML file (`--config`), then `--set group.key=value`, each overriding "
        "the one before. The defaults here are those of the classes; `clipmill train --stage NAME --dry-run` prints "
        "the estimated cost of a preset. [Training](training.md) lists the presets.",
        config=Stage,
        more=(("model.overrides", UNetConfig),),
    ),
)


def page() -> str:
    """The settings reference, in Markdown."""
    parts = [
        "# Settings",
        _wrapped(
            "Every key of every configuration. The tables are generated from the classes with `python -m "
            "pipelines.settings docs/settings.md`. An unknown key is an error that names the nearest known one. Keys "
            "end in their unit: `_s` is seconds, `_px` pixels, `_bytes` bytes, `_fps` frames per second."
        ),
    ]
    for chapter in CHAPTERS:
        parts += [f"## {chapter.title}", _wrapped(chapter.summary)]
        for group in groups(chapter):
            parts += [f"### {group.title}", _wrapped(group.summary), _table(group.settings)]
            parts += [f"Default of `{s.key}`:\n\n> {s.long_default}" for s in group.settings if s.long_default]
    return "\n\n".join(parts) + "\n"


def groups(chapter: Chapter) -> Iterator[Group]:
    """The class of a chapter, then those of its groups, each once."""
    pending = [("top level", "", chapter.config), *((key, f"{key}.", config) for key, config in chapter.more)]
    while pending:
        title, prefix, config = pending.pop(0)
        settings: list[Setting] = []
        nested: list[tuple[str, str, type]] = []
        for name, kind, default, bounds in _fields(config):
            group = _group(kind)
            if group is None:
                settings.append(_setting(config, f"{prefix}{name}", name, kind, default, bounds))
            else:
                nested.append((f"{prefix}{name}", f"{prefix}{name}.", group))
                if default is None:
                    settings.append(_setting(config, f"{prefix}{name}", name, kind, default, bounds))
        pending[:0] = nested
        if settings:
            summary = _sentence(config.__doc__).partition(" Raises ")[0]
            yield Group(title=f"{chapter.command}: {title}", summary=summary, settings=tuple(settings))


def meanings(config: type) -> dict[str, str]:
    """Field -> docstring, for a class and its bases."""
    docstrings: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if base.__module__.partition(".")[0] in ("builtins", "pydantic", "abc", "typing"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                docstrings[statement.target.id] = _sentence(following.value.value)
    return docstrings


def _fields(config: type[BaseModel]) -> Iterator[tuple[str, Any, Any, Sequence[Any]]]:
    """Name, type, default and bounds of each field."""
    hints = get_type_hints(config)
    for name, field in config.model_fields.items():
        yield name, hints[name], field.get_default(call_default_factory=True), field.metadata


def _group(kind: Any) -> type[BaseModel] | None:
    """The configuration class that a field contains, if any."""
    kinds = get_args(kind) if _is_union(kind) else (kind,)
    return next((member for member in kinds if isinstance(member, type) and issubclass(member, BaseModel)), None)


def _setting(config: type, key: str, name: str, kind: Any, default: Any, bounds: Sequence[Any]) -> Setting:
    shown, long_default = _default(default, name)
    return Setting(
        key=key,
        type=_noun(kind) + _bounds(bounds),
        default=shown,
        unit="" if _choices(kind) else _unit(name),
        meaning=meanings(config).get(name, ""),
        long_default=long_default,
    )


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name == end or name.endswith(f"_{end}")), "")


def _choices(kind: Any) -> bool:
    return kind is bool or any(get_origin(member) is Literal for member in (kind, *get_args(kind)))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _noun(kind: Any) -> str:
    """Name of a type for someone who writes YAML."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        noun = ", ".join(f"`{value}`" for value in of)
    elif _is_union(kind):
        noun = " or ".join(_noun(member) for member in of)
    elif origin is tuple:
        count = "" if Ellipsis in of else f" of {len(of)}"
        noun = f"list{count}: {_noun(of[0])}"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        noun = "mapping"
    elif _group(kind) is not None:
        noun = "group"
    elif of:  # Annotated
        noun = _noun(of[0])
    else:
        noun = _NOUNS[kind]
    return noun


def _bounds(metadata: Sequence[Any]) -> str:
    signs = ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))
    limits = [f"{sign} {getattr(m, name):,.10g}" for m in metadata for kind, name, sign in signs if isinstance(m, kind)]
    return f", {', '.join(limits)}" if limits else ""


def _default(value: Any, name: str) -> tuple[str, str]:
    if value is PydanticUndefined:
        return "required", ""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    text = json.dumps(value, default=dict)
    if isinstance(value, str) and len(value) > _LONGEST_DEFAULT:
        return "see below", value
    if isinstance(value, float):
        text = f"{value:.6g}"
    if name.endswith("bytes"):
        return f"`{text}` ({_binary(value)})", ""
    return f"`{text}`", ""


def _binary(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count % 1024 or count < 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(settings: Sequence[Setting]) -> str:
    lines = ["| key | type | default | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        cells = (f"`{setting.key}`", setting.type, setting.default, setting.unit, setting.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(page())
