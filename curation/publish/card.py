"""README.md of a published folder: a card with a YAML head that the Hub reads."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from clipmill.public import public_text
from curation.publish.facts import NOT_STATED, Facts
from curation.publish.layouts import DATA, Target
from curation.shards.sample import sample_type

if TYPE_CHECKING:
    from curation.publish.plan import PublishConfig

CARD, SHEET, SOURCES_FILE, CLIPS_FILE = "README.md", "contact-sheet.jpg", "sources.csv", "clips.parquet"

_LICENSES = {
    *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0"),
    *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "pddl", "mit", "apache-2.0"),
}
"""Identifiers of the Hub; others are "other"."""
_SAME_LICENSE = {"cc0": "cc0-1.0"}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_MOST_ROWS = 20
_HOW: Mapping[str, str] = {
    "hf": """```python
from datasets import load_dataset

clips = load_dataset("USER/NAME", split="train", streaming=True)
```
Or read the shards with `webdataset`, `tar`, or clipmill (`clipmill train`, `clipmill fetch {data} --where ...`).
`{data}/clips.parquet` has a row per clip with its place in the shards, its captions, scores and metadata.""",
    "files": """```python
from datasets import load_dataset

clips = load_dataset("USER/NAME", split="train")
```
`data/` has a video and its caption (`.txt`) per clip; `clips.parquet` has a row per clip with captions, scores and
metadata.""",
    "finetrainers": """Start finetrainers in `{data}/` with `--dataset_config ../training.json`, which lists the buckets
(frames, height, width) that occur. Of a clip that is longer than its bucket, finetrainers takes evenly spaced frames:
its motion gets faster. `clips.parquet` has a row per clip with captions, scores and metadata.""",
    "diffusion-pipe": """Start diffusion-pipe in this folder, with `dataset = "dataset.toml"` in the training
configuration. `data/` has a folder per bucket (width x height x frames). `clips.parquet` has a row per clip with
captions, scores and metadata.""",
    "musubi": """Start musubi-tuner's scripts for caching and training in this folder with `--dataset_config
dataset.toml`. `data/` has a folder per length in frames; musubi-tuner groups by size. `clips.parquet` has a row per
clip with captions, scores and metadata.""",
}


def card(facts: Facts, *, to: Target, config: "PublishConfig", has_sheet: bool) -> str:
    """The text of README.md."""
    name = facts.selection.name
    head = yaml.safe_dump(_head(facts, to), sort_keys=False, allow_unicode=True, width=120)
    parts = [
        f"---\n{head}---",
        f"# {_plain(name)}",
        _summary(facts, to, config),
        *([f"![Frames of the clips]({SHEET})"] if has_sheet else []),
        "## Use",
        _HOW[to].format(data=DATA),
        "To upload it: "
        f'`hf upload USER/{_plain(name)} . --repo-type dataset --exclude ".clipmill/*"` (older: '
        "`huggingface-cli upload`). clipmill uploads nothing.",
        "## Content",
        _content(facts, keeps_sound=config.shards.extraction.audio == "keep"),
        "## Selection",
        _selection(facts),
        "## Licences",
        _licenses(facts),
        "## Versions",
        _versions(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts, to: Target) -> dict[str, Any]:
    head: dict[str, Any] = {
        **_license(facts),
        "pretty_name": facts.selection.name,
        "task_categories": ["text-to-video"],
        "tags": ["video", "clipmill", *(["webdataset"] if to == "hf" else [])],
        "size_categories": [next((label for most, label in _SIZES if facts.clips < most), "n>10M")],
    }
    if to == "hf":
        files = [{"split": "train", "path": f"{DATA}/*.tar"}]
        head["configs"] = [{"config_name": "default", "data_files": files}]
        head["dataset_info"] = {"config_name": "default", "features": _features()}
    elif to == "files":
        paths = [f"{DATA}/*.mp4", f"{DATA}/metadata.jsonl"]
        head["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": paths}]}]
    return head


def _license(facts: Facts) -> dict[str, Any]:
    """The licence as an identifier of the Hub; "other" for several licences or an unlisted one."""
    names = [tally.name for tally in facts.licenses]
    ids = {re.sub(r"[\s_]+", "-", name.strip().lower()) for name in names}
    ids = {_SAME_LICENSE.get(each, each) for each in ids}
    if len(ids) == 1 and ids <= _LICENSES:
        return {"license": ids.pop()}
    if names == [NOT_STATED] or not names:
        return {"license": "unknown"}
    return {"license": "other", "license_name": "per-source", "license_link": SOURCES_FILE}


def _features() -> list[dict[str, Any]]:
    """The features of a sample as `datasets` writes them into cards."""
    return [
        {"name": "json", **_feature(sample_type("mp4"))},
        {"name": "mp4", "dtype": "video"},
        {"name": "txt", "dtype": "string"},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    if pa.types.is_list(kind):
        item = _feature(kind.value_type)
        return {"list": item.get("dtype") or item["struct"]}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind))}


def _summary(facts: Facts, to: Target, config: "PublishConfig") -> str:
    rate = config.rate(to)
    sentences = [
        f"{facts.clips:,} clips, {_hours(facts.seconds)} of video from {facts.sources:,} "
        f"{'source' if facts.sources == 1 else 'sources'}, {_size(facts.bytes)}.",
        "Each clip is one shot: no cut, no transition, no bars." if to != "hf" else "Each clip is one shot.",
    ]
    if rate is not None:
        sentences.append(f"Frame rate: {float(rate):g} frames/s (nearest frame in time, no blending).")
    if facts.left_out:
        reasons = ", ".join(f"{kind.replace('_', ' ')} ({count:,})" for kind, count in facts.left_out.items())
        sentences.append(f"Selected but not included: {reasons}.")
    return " ".join(sentences)


def _content(facts: Facts, *, keeps_sound: bool) -> str:
    shortest, median, longest = facts.duration_s
    captions = ", ".join(f"{_plain(source)} ({count:,})" for source, count in facts.captions.items()) or "none"
    rows = [
        ("clips", f"{facts.clips:,}"),
        ("duration", f"{shortest:.2f} to {longest:.2f} s, median {median:.2f} s"),
        ("sizes", _counted(facts.sizes)),
        ("frames/s of the sources", _counted(facts.fps)),
        ("captions by", captions),
        ("clips without caption", f"{facts.without_caption:,}"),
        ("sound", f"kept for clips of sources with sound ({facts.with_sound:,})" if keeps_sound else "none"),
    ]
    return _table(("", ""), rows)


def _selection(facts: Facts) -> str:
    chosen = facts.selection
    rows = [("all clips", "", "", f"{chosen.total_clips:,}", _hours(chosen.total_seconds))]
    for step in chosen.funnel:
        dropped = step.removed + step.unscored_dropped
        rows.append(
            (step.rule, step.skipped or step.asked, f"{dropped:,}", f"{step.clips_left:,}", _hours(step.seconds_left))
        )
    resolved = _public(chosen.resolved)
    rules = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=100)
    shortened = resolved != chosen.resolved
    return (
        _table(("rule", "asked", "dropped", "left", "video"), rows)
        + "\n\nThe resolved rules, for `clipmill select --config`:\n\n```yaml\n"
        + rules.replace("```", "'''")
        + "```"
        + ("\n\nLocal paths or keys were removed from them." if shortened else "")
    )


def _licenses(facts: Facts) -> str:
    rows = [
        (tally.name, f"{tally.sources:,}", f"{tally.clips:,}", _hours(tally.seconds))
        for tally in facts.licenses[:_MOST_ROWS]
    ]
    more = len(facts.licenses) - len(rows)
    return (
        _table(("licence", "sources", "clips", "video"), rows)
        + (f"\n\nand {more:,} more." if more > 0 else "")
        + "\n\nLicences are as stated in the metadata of the videos; clipmill does not verify them. To request the "
        f"removal of a video, give its `source_id`: `{SOURCES_FILE}` lists every source with its address, licence and "
        "author. Clip ids start with the `source_id`, in file names and in every table."
    )


def _versions(facts: Facts) -> str:
    rows = [
        ("clipmill", version("clipmill"), ""),
        ("dataset", f"format {facts.dataset['format_version']}", f"configuration {facts.dataset['fingerprint'][:16]}"),
        ("clips", f"{facts.selection.clips:,} selected", f"sha256 of their ids {facts.selection.clips_sha256[:16]}"),
    ]
    for scorer in facts.scorers:
        weights = ", ".join(f"{model} {digest}" for model, digest in scorer.weights.items())
        rows.append((scorer.name, f"version {scorer.version}", f"weights: {weights}" if weights else ""))
    notices = "".join(f"\n\n{_plain(public_text(notice))}" for notice in facts.notices)
    return _table(("", "", ""), rows) + notices


def _counted(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{_plain(name)} ({count:,})" for name, count in [*counts.items()][:6])
    return shown + (f", {len(counts) - 6:,} others" if len(counts) > 6 else "")


def _hours(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6 * 3600 else f"{seconds / 3600:,.0f} h"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_plain(public_text(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Untrusted text, escaped for Markdown: one line, no HTML, links or table cells."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))


def _public(value: Any) -> Any:
    """Nested values with their texts made safe to publish."""
    if isinstance(value, dict):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    return public_text(value) if isinstance(value, str) else value


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} GB"
