"""Selection rules as a person writes them: bounds per column, by value or by percentile, and one SQL condition.

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


class Rules(Config):
    """A named set of rules. Their order affects the funnel, but not which clips are selected."""

    name: str
    """Name of the selection: letters, digits, '-' and '_'. Overridden by `--name`."""
    rules: dict[str, Rule] = Field(default_factory=dict)
    """Column of the joined view -> bounds."""
    where: str | None = None
    """SQL condition on the joined view. A clip for which it is null counts as unscored and is dropped."""

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"expected a name of letters, digits, '-' and '_', got {name!r}")
        return name

    def named(self, name: str) -> "Rules":
        """The same rules under another name. Raises UserError for a name that cannot be a file's."""
        return Rules.from_values({**self.as_given(), "name": name}, origin="--name")

    def as_given(self) -> dict[str, Any]:
        """What was asked for, as plain values without defaults: what a rules file would hold."""
        return self.model_dump(exclude_defaults=True)


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
