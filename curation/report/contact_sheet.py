"""Contact sheet of clips: their stored pictures in a grid, as one HTML file that works offline or as a PNG."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_MARGIN_PX, _PICTURE_PX, _LINE_PX, _COLUMNS = 16, 300, 20, 4
_LARGEST_SIDE_PX = 8192
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; }
h1 { font-size: 20px; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0; }
.quiet { color: var(--quiet); font-size: 13px; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); gap: 16px; padding: 0;
  list-style: none; }
li { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
li > div:not(.strip) { padding: 8px 12px 12px; }
.strip { display: flex; align-items: center; background: #000; }
.strip img { flex: 1 1 0; min-width: 0; max-height: 240px; object-fit: contain; }
.strip.none { justify-content: center; height: 90px; color: #aaa; }
.caption { overflow-wrap: anywhere; }
""".strip()


@dataclass(frozen=True, kw_only=True)
class Card:
    """A clip on the sheet."""

    title: str
    """Rank and score."""
    caption: str
    where: str
    """Source and times."""
    clip_id: str
    jpegs: tuple[bytes | None, ...]
    """First, middle and last picture."""


def html_sheet(title: str, subtitle: str, cards: Sequence[Card]) -> str:
    """One page; texts are escaped, and nothing is fetched."""
    items = "\n".join(map(_item, cards)) or "<li><div>No clips.</div></li>"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{_text(title)}</h1>\n<p class="quiet">{_text(subtitle)}</p>\n<ol>\n{items}\n</ol>\n</body>\n</html>\n'
    )


def png_sheet(title: str, subtitle: str, cards: Sequence[Card]) -> bytes:
    """The middle picture of each clip with its title and source, four in a row, as PNG."""
    columns = max(1, min(_COLUMNS, len(cards)))
    tiles = [_tile(card) for card in cards]
    heights = [
        max((tile.height for tile in tiles[start : start + columns]), default=0) + 2 * _LINE_PX + _MARGIN_PX
        for start in range(0, len(tiles), columns)
    ]
    top = 2 * _MARGIN_PX + 3 * _LINE_PX
    sheet = Image.new("RGB", (_MARGIN_PX + columns * (_PICTURE_PX + _MARGIN_PX), top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    wide_px = sheet.width - 2 * _MARGIN_PX
    _line(draw, (_MARGIN_PX, _MARGIN_PX), title, 20, wide_px)
    _line(draw, (_MARGIN_PX, _MARGIN_PX + 2 * _LINE_PX - 8), subtitle, 14, wide_px, "#666666")
    for i, (card, tile) in enumerate(zip(cards, tiles, strict=True)):
        x = _MARGIN_PX + i % columns * (_PICTURE_PX + _MARGIN_PX)
        y = top + sum(heights[: i // columns])
        sheet.paste(tile, (x + (_PICTURE_PX - tile.width) // 2, y))
        below = y + heights[i // columns] - 2 * _LINE_PX - _MARGIN_PX
        _line(draw, (x, below + 3), card.title, 15, _PICTURE_PX)
        _line(draw, (x, below + _LINE_PX + 1), card.where, 13, _PICTURE_PX, "#666666")
    written = io.BytesIO()
    sheet.save(written, "PNG", optimize=True)
    return written.getvalue()


def _item(card: Card) -> str:
    pictures = [base64.b64encode(jpeg).decode() for jpeg in card.jpegs if jpeg]
    images = "".join(
        f'<img src="data:image/jpeg;base64,{picture}" alt="{_text(name)} picture" loading="lazy">'
        for name, picture in zip(("first", "middle", "last"), pictures, strict=False)
    )
    strip = f'<div class="strip">{images}</div>' if images else '<div class="strip none">no pictures</div>'
    caption = f'<p class="caption">{_text(card.caption)}</p>' if card.caption else ""
    return (
        f"<li>{strip}<div><p><strong>{_text(card.title)}</strong></p>{caption}"
        f'<p class="quiet">{_text(card.where)}<br>{_text(card.clip_id)}</p></div></li>'
    )


def _text(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else " " for c in text).encode("utf-8", "replace").decode())


def _tile(card: Card) -> Image.Image:
    """The middle picture, or a grey one."""
    jpegs = [jpeg for jpeg in card.jpegs if jpeg]
    try:
        with Image.open(io.BytesIO(jpegs[len(jpegs) // 2] if jpegs else b""), formats=["JPEG"]) as image:
            if max(image.size) > _LARGEST_SIDE_PX:
                raise ValueError("too large for a preview")
            tile = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for unreadable files
        return Image.new("RGB", (_PICTURE_PX, _PICTURE_PX * 9 // 16), "#cccccc")
    tile.thumbnail((_PICTURE_PX, _PICTURE_PX))
    return tile


def _line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, wide_px: int, color: str = "black"
) -> None:
    """A line that ends in an ellipsis where it is too long; characters that Pillow's own font lacks become '?'."""
    font = ImageFont.load_default(size)
    shown = text.encode("latin-1", "replace").decode("latin-1")
    shown = "".join(c if c.isprintable() else " " for c in shown)
    if draw.textlength(shown, font) > wide_px:
        while shown and draw.textlength(f"{shown}...", font) > wide_px:
            shown = shown[:-1]
        shown += "..."
    draw.text(at, shown, color, font)
