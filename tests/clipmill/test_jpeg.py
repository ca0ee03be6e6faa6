"""Sizes of JPEGs from their headers."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipmill.jpeg import jpeg_size


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (320, 180), (17, 4000)])
def test_the_size_is_that_of_the_decoded_picture(size: tuple[int, int], progressive: bool):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a description" * 100
    Image.new("RGB", size, (9, 99, 199)).save(file, "JPEG", progressive=progressive, exif=exif, comment=b"\xff\xd8\xff")
    assert jpeg_size(file.getvalue()) == size
    image = np.zeros((size[1], size[0], 3), np.uint8)
    assert jpeg_size(cv2.imencode(".jpg", image)[1].tobytes()) == size


@given(st.binary(max_size=60), st.integers(0, 30))
def test_other_bytes_have_no_size_or_a_plausible_one(content: bytes, kept: int):
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    size = jpeg_size(jpeg[:kept] + content)
    assert size is None or (0 <= size[0] <= 0xFFFF and 0 <= size[1] <= 0xFFFF)
    assert jpeg_size(content) is None or content[:2] == b"\xff\xd8"
