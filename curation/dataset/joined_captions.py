"""SQL for the captions of a clip: those supplied with its video, which are stored once in the row of its source, and
those of captioners, in the version that counts.

Columns of the joined view: `captions`, all of them; `caption`, the text of the newest.
"""

from collections.abc import Iterable

from curation.dataset.sql import literal, quoted
from curation.scores.columns import CAPTIONS

_RUN_FIRST = ("coca", "video", "merged")
_CAME_WITH_IT = "list_transform(coalesce(clips.source_captions, []), lambda i: sources.captions[i + 1])"
_FIRST_THAT_CAME = f"list_filter(list_transform({_CAME_WITH_IT}, lambda c: c.text), lambda t: t <> '')[1]"

Generated = tuple[str, str, str]
"""Captioner, view of the version that counts, when that was begun."""

_BOOKKEEPING = ("caption", "error", "error_kind", "prompt_tokens", "completion_tokens", "price")


def is_bookkeeping(view: str, column: str) -> bool:
    """Whether a column of a captioner is not a field of its captions, but contained in `captions`, or their cost."""
    folder, _, name = view.partition("@")[0].partition("_")
    return folder == CAPTIONS and column in {f"{name}_{each}" for each in _BOOKKEEPING}


def generated(versions: Iterable[tuple[str, int, str, bool, str]]) -> list[Generated]:
    """The captioners with captions, in the order in which they run. `versions`: rows of `score_versions`."""
    listed = [(name, view, at) for name, _, view, counted, at in versions if counted and view.startswith(CAPTIONS)]
    return sorted(listed, key=lambda each: run_order(each[0]))


def run_order(captioner: str) -> tuple[int, str]:
    """Sort key of captioners: clipmill's own as they run, then others by name."""
    return (_RUN_FIRST.index(captioner) if captioner in _RUN_FIRST else len(_RUN_FIRST)), captioner


def all_captions(listed: Iterable[Generated]) -> str:
    """All captions, those supplied with the video first: a list as in the sources table. The query must join
    sources."""
    captions = _CAME_WITH_IT
    for name, view, _ in listed:
        values = {"text": f"{name}_caption", "error_kind": f"{name}_error_kind", "error": f"{name}_error"}
        fields = ", ".join(f"{key} := {quoted(view)}.{quoted(column)}" for key, column in values.items())
        caption = f"[struct_pack(source := {literal(name)}, {fields})]"
        captions = f"list_concat({captions}, CASE WHEN {quoted(view)}.clip_id IS NULL THEN [] ELSE {caption} END)"
    return captions


def newest_caption(listed: Iterable[Generated]) -> str:
    """The text of the captioner whose version was started last, among those with text, or else that of the first
    caption supplied with the video. The query must join sources."""
    newest = sorted(listed, key=lambda each: (each[2], run_order(each[0])), reverse=True)
    texts = [f"{quoted(view)}.{quoted(f'{name}_caption')}" for name, view, _ in newest]
    return f"coalesce({', '.join([*texts, _FIRST_THAT_CAME])})"
