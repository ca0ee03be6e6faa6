"""What a curation run is configured with: one YAML file, unknown keys refused, all of it saved with the dataset."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from curation.errors import UserError
from curation.scan import ScanConfig
from curation.scores.text import TextConfig


class CurateConfig(ScanConfig):
    """Everything that decides what a curated dataset holds: the scan's settings, and each scorer's under its name."""

    text_area: TextConfig = Field(default_factory=TextConfig)

    @classmethod
    def from_file(cls, path: str | Path) -> "CurateConfig":
        """Read a YAML overlay over the defaults. Raises UserError with the file's name and what is wrong in it."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the configuration {str(path)!r} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise UserError(f"the configuration {str(path)!r} is not valid YAML: {error}") from error
        if values is not None and not isinstance(values, dict):
            raise UserError(f"the configuration {str(path)!r} holds {type(values).__name__}, expected a mapping")
        return cls.checked(values or {}, str(path))

    @classmethod
    def checked(cls, values: dict[str, Any], origin: str) -> "CurateConfig":
        """Validate settings. Raises UserError naming `origin` and every setting that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
            raise UserError(f"{origin}: " + "; ".join(problems)) from error
