"""Hooks of the site: pages that are not under docs/, and GitHub's Markdown where Python-Markdown reads it otherwise."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}
"""File at the root of the repository -> its page."""
_LINK = re.compile(r"(\]\()([^)#\s]+)")
_BLOCK = re.compile(r"(?:[-*] |\d+\. |\|)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose files lie at the root of the repository."""
    for name, page in PAGES.items():
        content = (ROOT / name).read_text()
        if name == "LICENSE":
            content = f"# License\n\n```\n{content}```\n"
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The same text with links as the site has them, and with lists and tables apart from the paragraph before."""
    at_root = page.file.src_uri in PAGES.values()
    lines: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            if _BLOCK.match(line) and lines and lines[-1].strip() and not _continues(lines[-1]):
                lines.append("")
            lines.append(_LINK.sub(lambda link: link[1] + _target(link[2], at_root=at_root), line))
            continue
        lines.append(line)
    return "\n".join(lines)


def _continues(line: str) -> bool:
    """Whether a line belongs to a list or a table, or is a heading."""
    return bool(_BLOCK.match(line)) or line.startswith((" ", "#"))


def _target(link: str, *, at_root: bool) -> str:
    name = link.removeprefix("../")
    if name in PAGES and (at_root or link != name):
        return PAGES[name]
    return link.removeprefix("docs/") if at_root else link
