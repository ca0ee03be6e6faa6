"""The base of every configuration: frozen, keyword-only, and unknown keys fail with the nearest known one."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from curation.errors import UserError


class Config(BaseModel):
    """Frozen settings, checked when made. An unknown key is an error that names the nearest known key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise UserError(unknown_name("configuration key", str(key), list(cls.model_fields)))
        return values


def unknown_name(what: str, came: str, known: list[str]) -> str:
    """The sentence for a name that is not known: what came, the nearest known one, and all that are."""
    near = difflib.get_close_matches(came, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {came!r}.{hint} Known: {', '.join(sorted(known))}."
