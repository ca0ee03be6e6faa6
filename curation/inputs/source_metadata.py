"""Metadata of a video in its JSON sidecars: license, author and the like, kept as text under one spelling."""

import json
from typing import Any

from clipmill.errors import UserError
from curation.inputs.list_cells import MAX_METADATA_CHARS, MAX_METADATA_NAMES, metadata_names, metadata_text

METADATA_NAMES = ("license", "licence", "author", "id", "tags", "url")
"""Keys that make a NAME.json without captions one of metadata."""
_CAPTION_KEYS = ("caption", "captions", "text")
_OF_INFO = {
    "id": "id",
    "title": "title",
    "description": "description",
    "license": "license",
    "uploader": "author",
    "channel": "channel",
    "webpage_url": "url",
    "upload_date": "upload_date",
    "tags": "tags",
    "categories": "categories",
}
"""Key of yt-dlp's NAME.info.json -> name. Its other keys are of formats and of the download, with addresses that
expire."""


def json_object(text: str) -> dict[str, Any]:
    """The object in a JSON text. Raises UserError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"invalid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"got {kind_of(content)}")
    return content


def kind_of(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def metadata_of_json(text: str) -> dict[str, str]:
    """The keys of a NAME.json that are no captions; values beyond the limits are left out."""
    try:
        content = {key: value for key, value in json_object(text).items() if key not in _CAPTION_KEYS}
    except UserError:  # a file without text; any other is an error of its captions
        return {}
    keys = list(content)[:MAX_METADATA_NAMES]
    return _within_limits(dict(zip(metadata_names(keys), (content[key] for key in keys), strict=True)))


def metadata_of_info(text: str) -> dict[str, str]:
    """What yt-dlp's NAME.info.json says of the video itself."""
    content = json_object(text)
    return _within_limits({name: content.get(key) for key, name in _OF_INFO.items()})


def title_of_info(text: str) -> str | None:
    """The title in a NAME.info.json."""
    title = json_object(text).get("title")
    return title if isinstance(title, str) else None


def _within_limits(values: dict[str, Any]) -> dict[str, str]:
    texts = {name: metadata_text(value) for name, value in values.items()}
    return {
        name: text.encode(errors="replace").decode()
        for name, text in texts.items()
        if text is not None and len(text) <= MAX_METADATA_CHARS
    }
