"""The report as one HTML file: template, style, script and data under a strict Content-Security-Policy."""

import base64
import hashlib
import html
from pathlib import Path

from clipmill import storage
from curation.dataset.tables import Dataset
from curation.report.payload import Report

_TEMPLATE = Path(__file__).with_name("template")


def write_page(dataset: Dataset, name: str, report: Report) -> str:
    """Write `report/NAME.html` atomically and return its path or URL."""
    path = dataset.file("report", f"{name}.html")
    storage.write_bytes(dataset.fs, path, page(report).encode())
    return storage.shown(dataset.fs, path)


def page(report: Report) -> str:
    """The HTML. The dataset's contribution is the escaped title and base64."""
    script = (_TEMPLATE / "page.js").read_text(encoding="utf-8")
    style = (_TEMPLATE / "page.css").read_text(encoding="utf-8")
    replaced = {
        "POLICY": _policy(script, style),
        "TITLE": html.escape(report.title),
        "STYLE": style,
        "DATA": report.data,
        "PICTURES": report.pictures,
        "SCRIPT": script,
    }
    rest, written = (_TEMPLATE / "page.html").read_text(encoding="utf-8"), []
    for name, text in replaced.items():
        before, marker, rest = rest.partition(f"<!--{name}-->")
        assert marker, f"the template lacks <!--{name}-->, or has it out of order"
        written += [before, text]
    return "".join([*written, rest])


def _policy(script: str, style: str) -> str:
    """Only the embedded script and style are allowed. Nothing is fetched except a video that the reader plays: a file,
    a URL, or a range of a shard from where the page came from."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "media-src file: blob: https: http:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
