"""Contact sheets: all frames of a video in one image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CELL_PX, _GAP_PX, _COLUMNS = 320, 6, 5


def contact_sheet(frames_THWC: NDArray[np.uint8], fps: float) -> Image.Image:
    """Arrange all frames in a grid, each labeled with its index and time."""
    count, height, width, _ = frames_THWC.shape
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    scale = _CELL_PX / max(width, height)
    cell_w, cell_h, label_h = round(width * scale), round(height * scale), 16
    sheet = Image.new(
        "RGB",
        (_GAP_PX + columns * (cell_w + _GAP_PX), _GAP_PX + rows * (cell_h + label_h + _GAP_PX)),
        color=(24, 24, 26),
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, frame_HWC in enumerate(frames_THWC):
        x, y = _GAP_PX + i % columns * (cell_w + _GAP_PX), _GAP_PX + i // columns * (cell_h + label_h + _GAP_PX)
        sheet.paste(Image.fromarray(frame_HWC).resize((cell_w, cell_h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + cell_h + 1), f"{i}   {i / fps:.2f} s", fill=(200, 200, 205), font=font)
    return sheet


def to_bytes(frames_TCHW: Tensor) -> NDArray[np.uint8]:
    """Convert frames in [-1, 1] to (T, H, W, 3) uint8 RGB."""
    array: NDArray[np.uint8] = ((frames_TCHW + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return array
