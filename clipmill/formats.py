"""Formats of the folders that clipmill writes: one layout of their descriptions, one check of their versions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipmill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of folder and the version of its layout."""

    kind: str
    """What a folder contains, as in "clipmill KIND"."""
    version: int
    """Raised if a reader of the older version would misread a folder."""
    if_older: str
    """What to do with a folder of an older version."""

    def describe(self, config: Mapping[str, Any] | None = None, /, **more: Any) -> dict[str, Any]:
        """Content of a file that describes a folder (dataset.json, plan.json, index.json, stage.json): format, version,
        the settings that the folder was started with, and `more`."""
        settings = {} if config is None else {"config": dict(config)}
        return {"format": self._name, "format_version": self.version, **settings, **more}

    def check(self, description: Mapping[str, Any], where: str) -> None:
        """Raise UserError if `where` has another format or version; KeyError or TypeError if its `description` is
        damaged."""
        name, version = description.get("format", self._name), description["format_version"]
        if not isinstance(name, str):
            raise TypeError(f"expected format to be a string, got {name!r}")
        if name != self._name:
            raise UserError(f"{where} has the format {name!r}, expected {self._name!r}: choose another folder.")
        if not isinstance(version, int) or isinstance(version, bool):
            raise TypeError(f"expected format_version to be an integer, got {version!r}")
        if version != self.version:
            advice = self.if_older if version < self.version else "upgrade clipmill"
            raise UserError(
                f"{where} has {self.kind} format {version}, this clipmill reads format {self.version}: {advice}."
            )

    @property
    def _name(self) -> str:
        return f"clipmill {self.kind}"


DATASET = Format(kind="dataset", version=3, if_older="re-curate its sources into a new folder")
SHARDS = Format(
    kind="shards", version=2, if_older="remove the folder and rerun `clipmill shard`, or give the selection a new name"
)
LATENTS = Format(
    kind="latents", version=2, if_older="remove the folder and rerun `clipmill cache-latents`, or choose another folder"
)
PUBLICATION = Format(kind="publication", version=1, if_older="publish into a new folder")
RUN = Format(kind="run", version=1, if_older="choose another --out")
