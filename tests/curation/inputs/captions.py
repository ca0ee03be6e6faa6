"""A source with captions beside it, and what is read of them."""

import json
from pathlib import Path
from typing import Any

from curation.inputs.caption import TimedCaption
from curation.inputs.captions import read_supplied
from curation.inputs.sources import Source

CAKE = "a cake rises in the oven of a small bakery"


def beside(source: Source, suffix: str, content: str | bytes | dict[str, Any]) -> None:
    content = json.dumps(content) if isinstance(content, dict) else content
    content = content.encode() if isinstance(content, str) else content
    Path(source.uri).with_suffix(suffix).write_bytes(content)


def read(source: Source, **metadata: str) -> list[TimedCaption]:
    return read_supplied(source, metadata).captions


def texts(source: Source, **metadata: str) -> list[tuple[str, str | None]]:
    found = read(source, **metadata)
    assert all((t.caption.text is None) != (t.caption.error is None) for t in found)
    return [(t.caption.source, t.caption.text) for t in found]
