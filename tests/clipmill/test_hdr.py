"""The tone map against the standards' numbers, and against what a picture must not lose."""

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from hypothesis import given
from hypothesis import strategies as st

from clipmill.hdr import ToneMap, bright_nits, is_hdr, linear_nits, stated_bright_nits
from clipmill.video import HLG, PQ, color_of
from tests.hdr_video import TRANSFERS, graphics_signal, hdr_frame, signal_of
from tests.media import texture

CODES = {"smpte2084": PQ, "arib-std-b67": HLG}
LEVELS = [None, 80.0, 130.0, 200.0, 1000.0]


def mapped(frame: av.VideoFrame, bright: float | None) -> np.ndarray:
    picture = ToneMap(bright).frame(frame, frame.width, frame.height, Interpolation.AREA)
    assert picture.format.name == "gbrp"
    return picture.to_ndarray().astype(int)


def colorful() -> np.ndarray:
    return cv2.merge([texture(96, 160, seed).astype(np.uint8) for seed in range(3)])


def test_light_is_what_the_standards_say() -> None:
    """BT.2408, table 1: reference white is 58 % PQ and 75 % HLG, both 203 nits; 18 % grey 38 % in both, 26 nits."""
    np.testing.assert_allclose(linear_nits(np.array([0.0, 0.508078, 0.580689, 0.751827, 1.0]), PQ),
                               [0, 100, 203, 1000, 10000], rtol=1e-4)  # fmt: skip
    np.testing.assert_allclose(linear_nits(np.array([0.0, 0.38, 0.75, 1.0]), HLG), [0, 26, 203, 1000], rtol=0.02)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("bright", LEVELS)
def test_a_ramp_rises_neutral_and_is_not_clipped(transfer: str, bright: float | None) -> None:
    ramp = np.repeat(np.linspace(0, 1, 1024)[None, :, None], 3, axis=2).repeat(8, axis=0)
    picture = mapped(hdr_frame(ramp, transfer), bright)
    row = picture[4]
    assert np.ptp(row, axis=1).max() <= 1
    assert row[0].max() == 0
    assert row[-1].min() >= 254
    assert np.all(np.diff(row[:, 1]) >= -1)  # chroma of half size
    assert np.all(np.diff(row[::8, 1]) >= 0)
    light = linear_nits(ramp[0, :, 0], CODES[transfer])
    assert len(set(row[(light > 203) & (light < 4000), 1])) >= (2 if bright and bright < 210 else 10)


@given(
    color=st.tuples(*[st.floats(0.02, 1)] * 3), nits=st.floats(0.5, 4000), bright=st.sampled_from(LEVELS),
    transfer=st.sampled_from(sorted(TRANSFERS)),
)  # fmt: skip
def test_no_hue_shifts(color: tuple[float, ...], nits: float, bright: float | None, transfer: str) -> None:
    """Of a colour within BT.709 the ratios of the channels stay, however bright it is."""
    nits = nits if transfer == "smpte2084" else nits / 4
    light = np.array(color)[:, None] / max(color) * nits
    signal = signal_of(np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]) @ light,
                       transfer)  # fmt: skip
    out = ToneMap(bright).sdr(signal, CODES[transfer]) ** 2.4
    assert 0 < out.max() <= 1
    np.testing.assert_allclose(out / out.max(), light / light.max(), atol=0.01)


@given(st.tuples(*[st.floats(0, 1)] * 3), st.sampled_from(LEVELS), st.sampled_from(sorted(TRANSFERS)))
def test_every_signal_has_a_picture(signal: tuple[float, ...], bright: float | None, transfer: str) -> None:
    out = ToneMap(bright).sdr(np.array(signal)[:, None], CODES[transfer])
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("bright", LEVELS)
def test_frames_follow_the_closed_form(transfer: str, bright: float | None) -> None:
    rng = np.random.default_rng(0)
    signal = rng.random((6, 8, 3)).repeat(16, axis=0).repeat(16, axis=1)  # patches: chroma of half size does not mix
    frame = hdr_frame(signal, transfer)
    picture = mapped(frame, bright)[8::16, 8::16]
    exact = ToneMap(bright).sdr(signal[8::16, 8::16].reshape(-1, 3).T, CODES[transfer]).T.reshape(6, 8, 3) * 255
    assert np.abs(picture - exact).mean() < 1.5


@pytest.mark.parametrize("white_nits", [100.0, 203.0])
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_graphics_come_back_as_they_were(transfer: str, white_nits: float) -> None:
    bgr = colorful()
    bgr[:20] = 255
    frame = hdr_frame(graphics_signal(bgr, transfer, white_nits), transfer)
    level = bright_nits([frame])
    assert level == pytest.approx(white_nits, rel=0.05)
    assert np.abs(mapped(frame, level) - bgr[..., ::-1].astype(int)).mean() < 3


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_luma_has_the_contrast_of_the_sdr_picture(transfer: str) -> None:
    grey = cv2.cvtColor(colorful(), cv2.COLOR_BGR2GRAY)
    frame = hdr_frame(graphics_signal(cv2.merge([grey] * 3), transfer), transfer)
    hdr_luma = frame.reformat(format="yuv420p").to_ndarray()[:96]
    exact = grey / 255 * 219 + 16
    assert np.abs(hdr_luma - exact).mean() > 20
    assert np.abs(ToneMap(100.0).luma(hdr_luma, frame) - exact).mean() < 1.5


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_white_of_footage_with_highlights_is_at_203_nits(transfer: str) -> None:
    """A third of the picture is 800 nits; paper (203 nits) stays bright and apart from it, grey (26 nits) grey."""
    nits = np.repeat([26.0, 203.0, 800.0], 64)[None, :, None].repeat(64, axis=0).repeat(3, axis=2)
    frame = hdr_frame(signal_of(nits, transfer), transfer)
    level = bright_nits([frame])
    assert level is not None
    assert 700 < level < 900
    grey, paper, lamp = (int(mapped(frame, level)[32, x, 1]) for x in (32, 96, 160))
    assert 100 < grey < 115
    assert 215 < paper < 235
    assert paper + 12 < lamp < 255


def test_the_bright_level_is_not_that_of_a_lamp() -> None:
    nits = np.full((100, 100, 3), 60.0)
    nits[:5, :5] = 4000
    assert bright_nits([hdr_frame(signal_of(nits, "smpte2084"), "smpte2084")]) == pytest.approx(60, rel=0.05)


def test_sdr_has_no_bright_level() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p10le")
    assert not is_hdr(frame)
    assert bright_nits([frame]) is None
    assert bright_nits([]) is None


def test_without_a_matrix_hdr_is_bt2020() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p10le")
    frame.color_trc = PQ
    assert color_of(frame, 16)[0] == 9


@pytest.mark.parametrize("text", ["", "nan", "inf", "-3", "0", "x", "1e999"])
def test_a_stated_bright_level_that_is_none(text: str) -> None:
    assert stated_bright_nits({"clipmill_bright_nits": text}) is None


def test_a_stated_bright_level() -> None:
    assert stated_bright_nits({"clipmill_bright_nits": "130.5"}) == 130.5
    assert stated_bright_nits({}) is None
