"""Metadata of a sample from its files: clipmill's JSON, another tool's JSON, or just a caption in a text file.

The keys are listed in docs/training.md.
"""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any

from training.sample_error import SampleError

CAPTION_KEYS = ("caption", "text", "prompt", "sentence", "description", "title")
"""Keys of captions in the JSON of other tools; the key becomes the source of the caption."""
TEXT_SOURCE = "txt"
"""Source of a caption in a .txt."""
_CONDITIONING = ("motion_bucket", "elevation")


def sample_metadata(members: Mapping[str, bytes]) -> dict[str, Any]:
    """`normalized` metadata of a sample's files. Raises SampleError for an invalid JSON, and as `normalized`."""
    return normalized(_json(members["json"]) if "json" in members else {}, members.get("txt"))


def normalized(values: Mapping[str, Any], txt: bytes | None = None) -> dict[str, Any]:
    """The values with `captions`, a list of objects with a `source` and a `text`, and `conditioning`, an object.

    Both are derived from the .txt and from the keys of other tools where they are missing or in another form. Raises
    SampleError for an undecodable .txt, and for captions or conditioning of other types.
    """
    captions = list(_listed_captions(values.get("captions")))
    if not any(caption.get("text") for caption in captions):
        captions = list(_other_captions(values, _text(txt))) or captions
    return {**values, "captions": captions, "conditioning": _conditioning(values)}


def _conditioning(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by name: from an object, from clipmill's list of names and values, or from top-level keys."""
    conditioning = values.get("conditioning")
    if conditioning is None:
        return {key: values[key] for key in _CONDITIONING if key in values}
    if isinstance(conditioning, list) and all(isinstance(each, dict) and "value" in each for each in conditioning):
        return {str(each.get("name")): each["value"] for each in conditioning}
    if not isinstance(conditioning, dict):
        raise SampleError("bad_field", f"conditioning must be an object, a list or null, got {conditioning!r:.200}")
    return conditioning


def _json(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", str(error)) from error
    if not isinstance(values, dict):
        raise SampleError("bad_json", f"expected an object, got {type(values).__name__}")
    return values


def _listed_captions(value: Any) -> Iterator[dict[str, Any]]:
    """Captions of the key `captions`: clipmill's objects, a text, a list of texts, or an object of texts by source."""
    if isinstance(value, dict):
        value = [{"source": source, "text": text} for source, text in value.items()]
    for caption in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(caption, str):
            yield {"source": "captions", "text": caption}
        elif isinstance(caption, dict) and isinstance(caption.get("text"), str | None):
            yield caption
        elif caption is not None:
            raise SampleError("bad_field", f"expected a caption with a text or null, got {caption!r:.200}")
    if not isinstance(value, str | list | None):
        raise SampleError("bad_field", f"captions must be a list, an object or a text, got {value!r:.200}")


def _other_captions(values: Mapping[str, Any], text: str | None) -> Iterator[dict[str, Any]]:
    """The caption of the .txt, and those of the JSON that differ from it."""
    seen = {""}
    for source, value in [(TEXT_SOURCE, text), *((key, values.get(key)) for key in CAPTION_KEYS)]:
        for caption in value if isinstance(value, list) else [value]:
            if isinstance(caption, str) and caption.strip() not in seen:
                seen.add(caption.strip())
                yield {"source": source, "text": caption.strip()}


def _text(content: bytes | None) -> str | None:
    if content is None:
        return None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError("bad_text", f"its txt is not {error.encoding} at byte {error.start:,}") from error
