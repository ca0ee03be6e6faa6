"""Selection rules as a person writes them: bounds per column, by value or by percentile, likeness to a text or a
picture, one SQL condition, and limits and balance between groups of clips.

Percentages drop the worst share of the clips that have the score, as the paper does (3.3, App. E.2.2).
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, Field, Strict, field_validator, model_validator

from clipmill.config import Config, read_yaml, unknown_name
from clipmill.errors import UserError

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

_Number = Annotated[float, Strict(), AllowInfNan(False)]


class Rule(Config):
    """Bounds on one column; a clip must pass all of them. Bounds are inclusive."""

    drop_lowest: str | None = None
    """Percentage, such as "25%", of the clips with the score that is dropped from the low end."""
    drop_highest: str | None = None
    """Percentage, such as "25%", of the clips with the score that is dropped from the high end."""
    min: _Number | None = None
    """Minimum value that passes, in the column's unit."""
    max: _Number | None = None
    """Maximum value that passes, in the column's unit."""
    unscored: Literal["drop", "keep"] = "drop"
    """Whether to drop or keep clips without the score."""

    @field_validator("drop_lowest", "drop_highest", mode="before")
    @classmethod
    def _is_percentage(cls, value: Any) -> Any:
        if value is None:
            return value
        match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
        if not match or float(match[1]) >= 100:
            raise ValueError(f"expected a percentage from 0% to below 100%, such as '25%', got {value!r}")
        return f"{match[1]}%"

    @model_validator(mode="after")
    def _leaves_something(self) -> "Rule":
        if not self.bounds():
            raise ValueError("empty rule: set drop_lowest, drop_highest, min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no clip can pass")
        if share(self.drop_lowest or "0%") + share(self.drop_highest or "0%") >= 1:
            raise ValueError(
                f"drop_lowest {self.drop_lowest} and drop_highest {self.drop_highest} together drop every clip"
            )
        return self

    def bounds(self) -> dict[str, str | float]:
        """The bounds that are given, by name: percentages as text, values as numbers."""
        names = ("drop_lowest", "drop_highest", "min", "max")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def ranks(self) -> bool:
        """Whether a bound depends on the other clips."""
        return self.drop_lowest is not None or self.drop_highest is not None


class Like(Rule):
    """Bounds on the cosine similarity of the embeddings of clip and query, -1 to 1. The query is a text, a clip or a
    picture."""

    text: str | None = None
    """What the clips show, such as "a dog on a beach"."""
    clip: str | None = None
    """A clip of the dataset, by its id."""
    picture: str | None = None
    """Address of a picture file."""
    embedding: tuple[_Number, ...] | None = None
    """The query as numbers. A selection records it; computed if not given."""

    @model_validator(mode="after")
    def _is_one_query(self) -> "Like":
        queries = [name for name in ("text", "clip", "picture") if getattr(self, name) is not None]
        if len(queries) > 1 or not (queries or self.embedding):
            raise ValueError(f"expected one of text, clip and picture, got {' and '.join(queries) or 'none'}")
        if self.embedding is not None and not any(self.embedding):
            raise ValueError("expected an embedding with a direction, got zeros")
        return self

    def as_given(self) -> dict[str, Any]:
        """As plain values without defaults, and without the embedding of a text, a clip or a picture."""
        computed = {"embedding"} if self.text or self.clip or self.picture else set()
        return self.model_dump(exclude_defaults=True, exclude=computed)

    @property
    def query(self) -> str:
        """The query in words."""
        if self.text is not None:
            return f"text {self.text!r}"
        return f"clip {self.clip}" if self.clip is not None else f"picture {self.picture or 'embedding'}"


class Within(Config):
    """Which clips of a group are kept first."""

    best: dict[str, Literal["highest", "lowest"]] = Field(default_factory=dict)
    """Numeric columns, most important first, and whether their highest or lowest value is best. Missing values come
    last. The order of ties is random; so is that of all clips if this is empty."""
    seed: int = Field(0, ge=0)
    """Seed of the random order, which depends only on the seed and the id of a clip."""
    unscored: Literal["drop", "keep"] = "drop"
    """Whether to drop or keep clips without a group. Kept ones do not count towards the limits."""


class MaxPer(Within):
    """Limit on the clips per value of a column, among the clips that pass the other rules. `{source: 5}` is short for
    `{source: {clips: 5}}`."""

    clips: int = Field(ge=1)
    """Maximum number of clips per value."""


class Balance(Within):
    """Balance between groups, among the clips that pass all other rules: each group contributes in proportion to
    size ** power, but at most all its clips."""

    by: str
    """Column that names the groups, such as `cluster`."""
    power: float = Field(0.5, ge=0, le=1)
    """With 1 the proportions stay the same, with 0 each group contributes the same number of clips."""
    clips: int = Field(ge=1)
    """Number of clips to keep. If no more are left by the other rules, all are kept."""


class Rules(Config):
    """A named set of rules. Their order affects the funnel, but not which clips are selected."""

    name: str
    """Name of the selection: letters, digits, '-' and '_'. Overridden by `--name`."""
    rules: dict[str, Rule] = Field(default_factory=dict)
    """Column of the joined view -> bounds."""
    like: tuple[Like, ...] = ()
    """Likeness to a text, a clip or a picture: one rule, or a list. Its score is the column `likeness`, that of the
    second rule `likeness_2`, and so on; `where` can use these columns."""
    where: str | None = None
    """SQL condition on the joined view. A clip for which it is null counts as unscored and is dropped."""
    max_per: dict[str, MaxPer] = Field(default_factory=dict)
    """Column, or `source` -> limit on the clips per value. Runs after the rules above, and after `duplicate_rank`."""
    balance: Balance | None = None
    """Balance between groups. Runs last."""

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"expected a name of letters, digits, '-' and '_', got {name!r}")
        return name

    @field_validator("like", mode="before")
    @classmethod
    def _is_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | Like) else value

    @field_validator("max_per", mode="before")
    @classmethod
    def _are_limits(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: {"clips": limit} if isinstance(limit, int) and not isinstance(limit, bool) else limit
            for name, limit in value.items()
        }

    def named(self, name: str) -> "Rules":
        """The same rules under another name. Raises UserError for a name that cannot be a file's."""
        return Rules.from_values({**self.model_dump(exclude_defaults=True), "name": name}, origin="--name")

    def likes(self) -> dict[str, Like]:
        """Name of its score -> each of `like`."""
        return {"likeness" if i == 1 else f"likeness_{i}": like for i, like in enumerate(self.like, 1)}

    def as_given(self) -> dict[str, Any]:
        """What was asked for, as plain values without defaults: what a rules file would hold."""
        values = self.model_dump(exclude_defaults=True)
        if self.like:
            values["like"] = [like.as_given() for like in self.like]
        return values


def share(percentage: str) -> Fraction:
    """A checked percentage as an exact share: "12.5%" is 1/8."""
    return Fraction(percentage.rstrip("%")) / 100


def load_preset(name: str, presets: Path) -> Rules:
    """Rules that come along, by name. Raises UserError that names those in the folder `presets`."""
    known = sorted(file.stem for file in presets.glob("*.yaml"))
    if name not in known:
        raise UserError(unknown_name("preset", name, known))
    return load_rules(str(presets / f"{name}.yaml"))


def load_rules(address: str) -> Rules:
    """Rules from a YAML file (any address that fsspec knows). Without a `name` inside, the file's own name is taken.

    Raises UserError that says what is wrong and where.
    """
    values = read_yaml(address)
    if not values:
        raise UserError(f"{address} is empty: expected name, rules and where")
    return Rules.from_values({"name": Path(address).stem, **values}, origin=address)
