"""One sample of a shard: whatever its JSON holds, it becomes a sample or says why not."""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from tests.training.shards import about, numbered, video
from training.data_config import DataConfig
from training.latents import LatentShape, latent_members
from training.motion import measure_motion_bucket
from training.sample_error import SampleError
from training.samples import Sample, choose_caption, collate, read_sample

CONFIG = DataConfig(frames=1, height_px=32, width_px=48)
PICTURE = cv2.imencode(".jpg", numbered(77))[1].tobytes()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CAPTIONS = st.lists(st.fixed_dictionaries({}, optional={"source": VALUES, "text": VALUES}) | VALUES, max_size=3)
CONDITIONING = st.fixed_dictionaries({}, optional={"motion_bucket": VALUES, "elevation": VALUES})


def read(content: Any) -> Sample:
    return read_sample("a", {"json": json.dumps(content).encode(), "jpg": PICTURE}, CONFIG, seed=0)


@given(VALUES | st.fixed_dictionaries({}, optional={"captions": CAPTIONS, "conditioning": CONDITIONING}))
def test_any_json_gives_a_sample_that_can_be_trained_on_or_a_reason(content: Any) -> None:
    try:
        sample = read(content)
    except SampleError:
        return
    assert isinstance(sample.caption, str)
    assert 0 <= sample.motion_bucket <= 255
    assert -90 <= sample.elevation <= 90


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conditioning": 5}, "bad_field: conditioning must be an object, a list or null, got 5"),
        ({"captions": 5}, "bad_field: captions must be a list, an object or a text, got 5"),
        ({"captions": [5]}, "bad_field: expected a caption with a text or null, got 5"),
        ({"captions": {"coca": 5}}, "bad_field: expected a caption with a text or null"),
        ({"conditioning": {"motion_bucket": float("nan")}}, "motion_bucket must be a number between 0 and 255"),
        ({"conditioning": {"elevation": 100}}, "elevation must be a number between -90 and 90, got 100"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        read(about(**changes))


def test_motion_and_elevation_are_those_of_the_clip_or_the_defaults() -> None:
    config = DataConfig(frames=1, height_px=32, width_px=48, motion_default=40)

    def conditioning(**values: float) -> tuple[float, float]:
        content = json.dumps({"captions": [], "conditioning": values}).encode()
        sample = read_sample("a", {"json": content, "jpg": PICTURE}, config, seed=0)
        return sample.motion_bucket, sample.elevation

    assert conditioning(motion_bucket=7, elevation=-30) == (7, -30)
    assert conditioning() == (40, 0)
    as_list = [{"name": "motion_bucket", "value": 7.0}, {"name": "elevation", "value": -30.0}]
    for entries, expected in ((as_list, (7, -30)), ([{"name": "", "value": 0.0}], (40, 0))):
        content = json.dumps({"captions": [], "conditioning": entries}).encode()
        sample = read_sample("a", {"json": content, "jpg": PICTURE}, config, seed=0)
        assert (sample.motion_bucket, sample.elevation) == expected


def test_what_is_no_json_is_told() -> None:
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(SampleError, match="bad_json"):
            read_sample("a", {"json": content, "jpg": PICTURE}, CONFIG, seed=0)


@pytest.mark.parametrize("latent", [None, {}, {"fps": 0, "picture": False}, {"fps": "8", "picture": False}, {"fps": 8}])
def test_latents_whose_rate_is_not_known_are_told(latent: Any) -> None:
    mean = torch.zeros(1, 4, 4, 6)
    members = latent_members(
        about(),
        mean_TCHW=mean,
        logvar_TCHW=mean,
        ends_ECHW=torch.zeros(2, 3, 32, 48, dtype=torch.uint8),
        fps=8.0,
        picture=False,
    )
    assert read_sample("a", members, CONFIG, seed=0).fps == 8
    with pytest.raises(SampleError, match="_field"):
        read_sample("a", members | {"json": json.dumps(about(latent=latent)).encode()}, CONFIG, seed=0)


def latent_files(**changes: Any) -> dict[str, bytes]:
    """The files of a latent sample, its JSON changed."""
    latent = torch.zeros(2, 4, 4, 6)
    ends = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    files = latent_members(about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=ends, fps=8.0, picture=False)
    return files | {"json": json.dumps(json.loads(files["json"]) | changes).encode()}


@pytest.mark.parametrize(
    "changes",
    [
        {"captions": [["text"]]},
        {"captions": [{"source": "coca", "text": 3}]},
        *({"conditioning": {"motion_bucket": value}} for value in ("high", [1], math.nan, 300, -1)),
        *({"conditioning": {"motion_bucket": 1, "elevation": value}} for value in (91, "up", [])),
        *({"latent": value} for value in (None, {}, [], {"fps": "8", "picture": False}, {"fps": 8, "picture": 1})),
        {"latent": {"fps": math.nan, "picture": False}},
    ],
)  # fmt: skip
def test_a_malformed_field_is_a_reason(changes: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match=r"bad_field|missing_field"):
        read_sample("a", latent_files(**changes), CONFIG, seed=0)


def caption(source: str, text: str | None = "a text") -> dict[str, Any]:
    return {"source": source, "text": text}


def drawn(captions: list[dict[str, Any]], shares: dict[str, float], count: int = 4000) -> dict[int | None, float]:
    """index -> how often it is drawn."""
    rng = random.Random(0)
    counts = Counter(choose_caption(captions, shares, rng) for _ in range(count))
    return {index: number / count for index, number in counts.items()}


def test_a_source_is_drawn_before_one_of_its_captions() -> None:
    """Three captions from a list and one of CoCa, half and half: each of the three has a sixth."""
    captions = [caption("list"), caption("list:b"), caption("coca:c"), caption("list", None), caption("list")]
    shares = drawn(captions, {"list": 0.5, "coca": 0.5})
    assert shares[2] == pytest.approx(1 / 2, abs=0.03)
    assert [shares[i] for i in (0, 1, 4)] == pytest.approx([1 / 6] * 3, abs=0.03)
    assert 3 not in shares


def test_shares_count_among_the_sources_that_are_there() -> None:
    captions = [caption("coca"), caption("video", None), caption("merged"), caption("other")]
    shares = drawn(captions, {"coca": 0.5, "video": 0.25, "merged": 0.25})
    assert shares == pytest.approx({0: 2 / 3, 2: 1 / 3}, abs=0.03)


def test_the_first_caption_counts_where_no_source_does() -> None:
    captions = [caption("a", None), caption("b"), caption("c"), caption("b")]
    assert drawn(captions, {}) == {1: 1.0}
    assert drawn(captions, {"coca": 1.0, "c": 0.0}) == {1: 1.0}
    assert drawn([caption("a", None), caption("b", "")], {"a": 1.0}) == {None: 1.0}
    assert drawn([], {}) == {None: 1.0}


SHAPE = LatentShape(channels=4, factor=8, context_width=16)
CLIPS = DataConfig(frames=2, height_px=32, width_px=48)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, bytes]:
    """The files of a latent sample with embeddings and tokens, its tensors changed."""
    latent, ends = torch.zeros(2, 4, 4, 6), torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    files = latent_members(
        about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=ends, fps=8.0, picture=False,
        embeddings_EC=torch.zeros(2, 16), tokens={0: torch.zeros(3, 16)},
    )  # fmt: skip
    tensors = load(files["latent.safetensors"])
    change(tensors)
    return files | {"latent.safetensors": save(tensors)}


def test_latents_as_they_should_be_are_read_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        files = with_tensors(lambda tensors, dtype=dtype: tensors.update(mean=torch.ones(2, 4, 4, 6, dtype=dtype)))
        latent = read_sample("a", files, CLIPS, seed=0, latent_shape=SHAPE).latent
        assert latent is not None
        assert {name: value.dtype for name, value in latent.items()} == {
            "mean": torch.float32, "logvar": torch.float32, "ends": torch.uint8, "embeddings": torch.float32,
            "tokens": torch.float32,
        }  # fmt: skip
        assert latent["mean"].eq(1).all()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mean", torch.full((2, 4, 4, 6), torch.nan)),
        ("logvar", torch.full((2, 4, 4, 6), torch.inf)),
        ("embeddings", torch.full((2, 16), -torch.inf)),
        ("tokens.0", torch.full((3, 16), torch.nan)),
        ("mean", torch.zeros(2, 4, 4, 6, dtype=torch.int64)),
        ("mean", torch.zeros(2, 4, 4, 6, dtype=torch.float64)),
        ("ends", torch.zeros(2, 3, 32, 48)),
        ("mean", torch.zeros(2, 4, 24)),
        ("mean", torch.zeros(())),
        ("mean", torch.zeros(0, 4, 4, 6)),
        ("mean", torch.zeros(2, 5, 4, 6)),
        ("mean", torch.zeros(3, 4, 4, 6)),
        ("logvar", torch.zeros(2, 4, 4, 7)),
        ("ends", torch.zeros(3, 3, 32, 48, dtype=torch.uint8)),
        ("ends", torch.zeros(2, 3, 32, 56, dtype=torch.uint8)),
        ("ends", torch.zeros(2, 3, 64, 96, dtype=torch.uint8)),
        ("embeddings", torch.zeros(1, 16)),
        ("embeddings", torch.zeros(2, 17)),
        ("tokens.0", torch.zeros(3, 17)),
        ("tokens.0", torch.zeros(0, 16)),
    ],
)
def test_a_tensor_that_is_not_as_it_should_be_breaks_its_sample(name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(SampleError, match=r"bad_latent: .*(must be|missing|non-finite|incompatible)"):
        read_sample(
            "a", with_tensors(lambda tensors: tensors.update({name: tensor})), CLIPS, seed=0, latent_shape=SHAPE
        )


@pytest.mark.parametrize(("frames", "size"), [(3, (32, 48)), (2, (64, 96)), (2, (48, 32))])
def test_latents_of_another_size_break_their_sample(frames: int, size: tuple[int, int]) -> None:
    latent = torch.zeros(frames, 4, size[0] // 8, size[1] // 8)
    ends = torch.zeros(2, 3, *size, dtype=torch.uint8)
    files = with_tensors(lambda tensors: tensors.update(mean=latent, logvar=latent.clone(), ends=ends))
    with pytest.raises(SampleError, match=rf"has {frames} frames of {size[0]} x {size[1]}; expected 2 of 32 x 48"):
        read_sample("a", files, CLIPS, seed=0, latent_shape=SHAPE)
    assert read_sample("a", files, CLIPS, seed=0).latent  # judged against nothing, they fit each other


def test_what_is_no_safetensors_file_is_told() -> None:
    for content in (b"", b"{}", b"\xff" * 100):
        with pytest.raises(SampleError, match="bad_latent"):
            read_sample("a", with_tensors(lambda _: None) | {"latent.safetensors": content}, CLIPS, seed=0)
    with pytest.raises(SampleError, match="missing logvar, ends"):
        read_sample("a", with_tensors(lambda t: [t.pop("logvar"), t.pop("ends")]), CLIPS, seed=0)
    with pytest.raises(SampleError, match="no_caption: has tokens, but none for caption 0"):
        read_sample("a", with_tensors(lambda t: t.update({"tokens.1": t.pop("tokens.0")})), CLIPS, seed=0)


NO_CAPTION = [{"source": "coca", "text": None}]


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        ({"caption_required": True}, {"captions": NO_CAPTION}, "no_caption: all 1 captions are empty"),
        ({"caption_required": True}, {"captions": []}, "no_caption: no caption"),
        ({}, {"latent": None}, "missing_field: expected 'latent' of type dict in its JSON, got None"),
        ({}, {"conditioning": {}},
         "missing_field: no motion bucket: cache the latents again, or set data.motion_default"),
        ({"elevation": True}, {"conditioning": {}},
         "missing_field: missing conditioning.elevation in its JSON"),
        ({}, {"latent": {"fps": 0, "picture": False}}, "missing_field: expected latent.fps above 0 in its JSON"),
        ({}, {"conditioning": {"motion_bucket": 256}},
         "bad_field: motion_bucket must be a number between 0 and 255, got 256"),
    ],
)  # fmt: skip
def test_what_a_stage_asks_for_and_a_sample_lacks_is_told(
    config: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    files = latent_files(**changes)
    with pytest.raises(SampleError) as caught:
        read_sample("a", files, CLIPS.replace(**config), seed=0)
    assert str(caught.value) == reason
    assert (caught.value.kind, caught.value.message) == tuple(reason.split(": ", 1))


def test_what_is_known_of_a_sample_goes_with_it() -> None:
    files = latent_files(conditioning={"motion_bucket": 255, "elevation": -90}, latent={"fps": 0.5, "picture": False})
    config = CLIPS.replace(elevation=True, caption_required=True, motion_default=3.0)
    sample = read_sample("k", files, config, seed=0)
    assert (sample.key, sample.caption, sample.motion_bucket) == ("k", "a bar code", 255)
    assert (sample.fps, sample.elevation, sample.picture) == (0.5, -90, False)
    minimal = read_sample(
        "k",
        latent_files(captions=NO_CAPTION, conditioning={}),
        config.replace(elevation=False, caption_required=False),
        seed=0,
    )
    assert (minimal.caption, minimal.motion_bucket, minimal.elevation) == ("", 3.0, 0.0)
    edge = latent_files(conditioning={"motion_bucket": 0, "elevation": 90}, latent={"fps": 1e6, "picture": False})
    assert read_sample("k", edge, CLIPS, seed=0).motion_bucket == 0
    beyond = latent_files(latent={"fps": 1000000.5, "picture": False})
    with pytest.raises(SampleError, match="fps must be a number between 0 and 1e"):
        read_sample("k", beyond, CLIPS, seed=0)


def test_the_seed_draws_the_caption() -> None:
    captions = [{"source": "a", "text": f"{i}"} for i in range(8)]
    config = CLIPS.replace(captions={"a": 1.0})
    drawn = [
        [read_sample("k", latent_files(captions=captions), config, seed=s).caption for s in range(9)] for _ in "ab"
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 3
    source = [{"text": "without"}, {"source": "", "text": "empty"}]
    assert {choose_caption(source, {"": 1.0}, random.Random(s)) for s in range(9)} == {0, 1}


def test_latents_of_a_picture_are_one_frame() -> None:
    ends = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    for frames in (1, 2):
        latent = torch.zeros(frames, 4, 4, 6)
        files = latent_members(about(), mean_TCHW=latent, logvar_TCHW=latent, ends_ECHW=ends, fps=1.0, picture=True)
        if frames == 1:
            unmeasured = files | {"json": json.dumps(json.loads(files["json"]) | {"conditioning": {}}).encode()}
            picture = read_sample("a", unmeasured, CLIPS, seed=0, latent_shape=SHAPE)
            assert (picture.picture, picture.motion_bucket) == (True, 0.0)
        else:
            with pytest.raises(SampleError, match=r"^bad_latent: has 2 frames of 32 x 48; expected 1 of 32 x 48$"):
                read_sample("a", files, CLIPS, seed=0, latent_shape=SHAPE)
    buckets = {"lengths": (3, 4), "aspect_ratios": (0.5, 2.0), "height_px": 128, "width_px": 128}
    with pytest.raises(SampleError) as caught:
        read_sample(
            "a",
            latent_files(),
            CLIPS.replace(**buckets),
            seed=0,
            latent_shape=SHAPE,
        )
    assert str(caught.value) == "bad_latent: has 2 frames of 32 x 48; expected 3 or 4 of 192 x 128 or 128 x 192"


def mean_of(sample: Sample) -> float:
    assert sample.frames_TCHW is not None
    return float(sample.frames_TCHW.float().mean())


def test_a_clip_is_read_as_its_configuration_says() -> None:
    """Rate, number of frames, size, reader and crop; the picture of a clip goes from dark left to bright right."""
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (64, 96, 3))
    files = {"json": json.dumps(about()).encode(), "mp4": video([ramp] * 24)}
    config = DataConfig(frames=3, height_px=32, width_px=32, fps=(12.0,))
    sample = read_sample("a", files, config, seed=0)
    assert sample.fps == pytest.approx(12)
    assert (sample.picture, sample.latent) == (False, None)
    assert sample.frames_TCHW is not None
    assert (sample.frames_TCHW.shape, sample.frames_TCHW.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert sample.shape == (False, (3, 3, 32, 32))
    other = read_sample("a", files, DataConfig(frames=9, lengths=(4, 2), height_px=32, width_px=32, fps=(6.0,)), seed=0)
    assert other.fps == pytest.approx(6)
    assert other.shape == (False, (4, 3, 32, 32))
    crops = [config.replace(crop=crop) for crop in ("center", "random", "random")]
    levels = [[round(mean_of(read_sample("a", files, each, seed=seed))) for seed in range(5)] for each in crops]
    assert len(set(levels[0])) == 1
    assert len(set(levels[1])) > 2
    assert levels[1] == levels[2]
    assert read_sample("a", files, config.replace(reader="decord"), seed=0).shape == sample.shape
    wide = config.replace(aspect_ratios=(2.0, 0.5), height_px=128, width_px=128)
    assert read_sample("a", files, wide, seed=0).shape == (False, (3, 3, 128, 192))
    with pytest.raises(SampleError, match="decode_error"):
        read_sample("a", files | {"mp4": b""}, config, seed=0)


def test_repeated_pictures_of_a_clip_are_left_out() -> None:
    """24 frames a second that show 12 pictures a second: the bar codes are dark for even pictures, bright for odd."""
    pictures = [np.full((64, 96, 3), 60 + 120 * (i // 2 % 2), np.uint8) for i in range(24)]
    shape = {"distinct_fps": 12.0, "distinct_frames": list(range(0, 24, 2))}
    files = {"json": json.dumps(about(shape=shape)).encode(), "mp4": video(pictures)}
    config = DataConfig(frames=6, height_px=32, width_px=32, fps=(24.0,))
    for seed in range(8):
        sample = read_sample("a", files, config, seed=seed)
        assert sample.fps == pytest.approx(12)
        assert sample.frames_TCHW is not None
        bright = [bool(frame.float().mean() > 120) for frame in sample.frames_TCHW]
        assert all(a != b for a, b in itertools.pairwise(bright))
    without_repeats = {"frames": 24, "distinct_fps": 24.0, "distinct_frames": list(range(24))}
    for changes in ({}, {"shape": without_repeats}, {"shape": without_repeats | {"distinct_fps": None}}):
        plain = read_sample("a", files | {"json": json.dumps(about(**changes)).encode()}, config, seed=0)
        assert plain.fps == pytest.approx(24)
    slow = {"frames": 24, "distinct_fps": 0.5, "distinct_frames": [0]}
    one = read_sample("a", files | {"json": json.dumps(about(shape=slow)).encode()}, config.replace(frames=1), seed=0)
    assert one.shape == (False, (1, 3, 32, 32))


@pytest.mark.parametrize(
    "shape",
    [
        {"distinct_fps": 12.0, "distinct_frames": []},
        {"distinct_fps": 12.0, "distinct_frames": [0, 0]},
        {"distinct_fps": 12.0, "distinct_frames": [-1, 0]},
        {"distinct_fps": 12.0, "distinct_frames": [0, 24]},
        {"distinct_fps": 12.0, "distinct_frames": [0.0, 2.0]},
        {"distinct_fps": 12.0, "distinct_frames": [False, True]},
        {"distinct_fps": 12.0, "distinct_frames": "all"},
        {"distinct_fps": None, "distinct_frames": [0, 2]},
        {"distinct_fps": 1000000.5, "distinct_frames": [0, 2]},
    ],
)
def test_repeats_that_cannot_be_are_a_reason(shape: dict[str, Any]) -> None:
    files = {"json": json.dumps(about(shape=shape)).encode(), "mp4": video(24)}
    with pytest.raises(SampleError, match=r"^(bad|missing)_field: .*distinct"):
        read_sample("a", files, DataConfig(frames=3, height_px=32, width_px=32, fps=(12.0,)), seed=0)


def test_repeats_without_a_rate_are_told() -> None:
    shape = {"distinct_fps": None, "distinct_frames": [0, 2]}
    files = {"json": json.dumps(about(shape=shape)).encode(), "mp4": video(24)}
    with pytest.raises(SampleError) as caught:
        read_sample("a", files, DataConfig(frames=3, height_px=32, width_px=32, fps=(12.0,)), seed=0)
    assert str(caught.value) == "missing_field: expected shape.distinct_fps above 0 in its JSON"


@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(24, 16, 40, 32), (24, 0, 40, 8), (0, 16, 8, 0)])
def test_the_bars_of_a_clip_are_cropped(left: int, top: int, right: int, bottom: int) -> None:
    """As if the clip had been cropped before."""
    blocks = np.random.default_rng(1).integers(0, 255, (12, 16, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    cropped = np.ascontiguousarray(blocks[top : 96 - bottom, left : 128 - right])
    config = DataConfig(frames=2, height_px=32, width_px=32, fps=(12.0,))

    def pixels(frame_HWC: np.ndarray, crop: list[int] | None) -> torch.Tensor:
        mp4 = video([frame_HWC] * 12, options={"qp": "0"})
        files = {"json": json.dumps(about(shape={"crop": crop})).encode(), "mp4": mp4}
        frames_TCHW = read_sample("a", files, config, seed=0).frames_TCHW
        assert frames_TCHW is not None
        return frames_TCHW.float()

    expected = pixels(cropped, None)
    assert (pixels(blocks, [left, top, right, bottom]) - expected).abs().mean() < 4
    assert (pixels(blocks, None) - expected).abs().mean() > 20


@pytest.mark.parametrize("crop", ["all", {}, [8, 8, 8], [8] * 5, [8, 8, 8, -1], [8, 8.0, 8, 8], [True, 8, 8, 8]])
def test_bars_that_cannot_be_are_a_reason(crop: Any) -> None:
    files = {"json": json.dumps(about(shape={"crop": crop})).encode(), "mp4": video(24)}
    with pytest.raises(SampleError) as caught:
        read_sample("a", files, DataConfig(frames=3, height_px=32, width_px=32, fps=(12.0,)), seed=0)
    expected = f"expected shape.crop as left, top, right, bottom in pixels, got {crop!r}"
    assert (caught.value.kind, caught.value.message) == ("bad_field", expected)


def test_motion_that_is_not_known_is_measured_at_the_rate_of_the_sample() -> None:
    ramp = np.random.default_rng(0).integers(0, 255, (8, 24, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    moving = [np.roll(ramp, 4 * i, axis=1)[:, :96] for i in range(24)]
    files = {"json": json.dumps(about(conditioning={})).encode(), "mp4": video(moving)}
    config = DataConfig(frames=6, height_px=64, width_px=64, fps=(12.0,))
    sample = read_sample("a", files, config, seed=0)
    assert sample.frames_TCHW is not None
    assert sample.motion_bucket == measure_motion_bucket(sample.frames_TCHW.numpy(), 12.0)
    assert sample.motion_bucket != measure_motion_bucket(sample.frames_TCHW.numpy(), 24.0)
    assert read_sample("a", files, config.replace(frames=1), seed=0).motion_bucket == 0.0


def test_a_picture_is_read_as_its_configuration_says() -> None:
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (64, 96, 3))
    files = {"json": json.dumps(about()).encode(), "jpg": cv2.imencode(".png", ramp)[1].tobytes()}
    config = DataConfig(frames=1, height_px=32, width_px=32, crop="random")
    samples = [read_sample("a", files, config, seed=seed) for seed in (0, 1, 2, 0)]
    assert all((each.fps, each.picture, each.shape) == (1.0, True, (True, (1, 3, 32, 32))) for each in samples)
    means = [mean_of(each) for each in samples]
    assert means[0] == means[3]
    assert len(set(means)) > 1
    assert mean_of(read_sample("a", files, config.replace(crop="center"), seed=0)) == pytest.approx(95, abs=2)


def test_a_batch_is_its_samples_stacked() -> None:
    known = [{"caption": f"c{i}", "fps": 8.0 + i, "motion_bucket": 100.0 + i, "elevation": 0.5 * i} for i in range(2)]
    frames = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(2)]
    clips = [Sample(key=f"k{i}", picture=True, frames_TCHW=frames[i], **known[i]) for i in range(2)]
    batch = collate(clips)
    assert (batch.keys, batch.captions, batch.image_only) == (["k0", "k1"], ["c0", "c1"], True)
    assert [batch.fps.tolist(), batch.motion_bucket.tolist(), batch.elevation.tolist()] == [
        [8, 9],
        [100, 101],
        [0, 0.5],
    ]
    assert torch.equal(batch.frames_BTCHW, torch.stack(frames))  # type: ignore[arg-type]
    assert [batch.mean_BTCHW, batch.logvar_BTCHW, batch.ends_BECHW] == [None] * 3
    names = ("mean", "logvar", "ends", "embeddings", "tokens")
    latents = [{name: torch.full((2,), 10.0 * n + i) for n, name in enumerate(names)} for i in range(2)]
    batch = collate([Sample(key=f"k{i}", picture=False, latent=latents[i], **known[i]) for i in range(2)])
    assert (batch.image_only, batch.frames_BTCHW) == (False, None)
    stacked = (
        batch.mean_BTCHW,
        batch.logvar_BTCHW,
        batch.ends_BECHW,
        batch.image_embeddings_BEC,
        batch.text_tokens_BNC,
    )
    for n, value in enumerate(stacked):
        assert value is not None
        assert value.tolist() == [[10.0 * n] * 2, [10.0 * n + 1] * 2]
    minimal = collate([Sample(key="k", picture=False, latent={"mean": torch.zeros(2)}, **known[0])])
    assert (minimal.ends_BECHW, minimal.image_embeddings_BEC, minimal.text_tokens_BNC) == (None, None, None)


def test_samples_of_one_shape_fit_into_a_batch() -> None:
    """The names of latents count, their order does not; a picture is not a clip of one frame."""
    known: dict[str, Any] = {"key": "k", "caption": "", "fps": 8.0, "motion_bucket": 1.0, "elevation": 0.0}
    one, other = torch.zeros(2), torch.zeros(3)
    shapes = {
        Sample(picture=picture, latent=latent, **known).shape
        for picture in (False, True)
        for latent in ({"mean": one}, {"mean": other}, {"ends": one}, {"mean": one, "ends": one})
    }
    assert len(shapes) == 8
    assert Sample(picture=False, latent={"ends": one, "mean": one}, **known).shape in shapes


def test_json_that_cannot_be_read_says_why() -> None:
    with pytest.raises(SampleError, match=r"^bad_json: Expecting property name enclosed in double quotes"):
        read_sample("a", {"json": b"{", "jpg": PICTURE}, CONFIG, seed=0)
