"""Estimates of a run from a sample of its inputs."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill import curate, select, shard
from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.selection.rules import Rules
from pipelines.costs import Prices
from pipelines.plan import Estimate, _student, plan, ratio_estimate
from pipelines.plan_duplicates import measure_search
from pipelines.status import status
from tests.caption_server import CaptionServer, says
from tests.media import panning, write_video
from tests.pipelines.corpora import WITHOUT_CLIP
from tests.pipelines.test_cli import run as run_cli


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.776), (9, 2.262), (19, 2.093), (99, 1.984), (9999, 1.960)])
def test_quantiles_are_those_of_students_distribution(freedom: int, quantile: float) -> None:
    assert _student(freedom) == pytest.approx(quantile, rel=0.01)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.1, 1e6)), min_size=2, max_size=30),
    st.floats(1e-3, 1e3),
    st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_values_in_proportion_to_their_weights_are_known_exactly(
    pairs: list[tuple[float, float]], factor: float, others: int
) -> None:
    weights = [weight for _, weight in pairs]
    estimate = ratio_estimate([factor * w for w in weights], weights, 2 * sum(weights), population=len(pairs) + others)
    assert estimate.value == pytest.approx(2 * factor * sum(weights))
    assert estimate.low == pytest.approx(estimate.value, rel=1e-6)
    assert estimate.high == pytest.approx(estimate.value, rel=1e-6)


def test_the_interval_covers_the_total_as_often_as_it_says() -> None:
    """Of a population in which cost follows size, with noise: 95 of 100 samples, give or take what chance does."""
    rng = random.Random(4)
    sizes = [rng.uniform(1, 10) for _ in range(300)]
    values = [size * rng.uniform(0.5, 1.5) for size in sizes]
    covered = 0
    for _ in range(1000):
        chosen = rng.sample(range(300), 20)
        estimate = ratio_estimate([values[i] for i in chosen], [sizes[i] for i in chosen], sum(sizes), population=300)
        covered += estimate.low <= sum(values) <= estimate.high
    assert 920 <= covered <= 980


def test_a_single_value_says_nothing_of_the_spread_and_the_whole_leaves_none() -> None:
    assert ratio_estimate([3.0], [1.0], 10.0, population=10) == Estimate(value=30.0, low=0.0, high=math.inf)
    assert ratio_estimate([3.0, 5.0], [1.0, 1.0], 2.0, population=2) == Estimate(value=8.0, low=8.0, high=8.0)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Eight videos of 1 to 4 s, and one that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        frames = panning(height=90, pixels_per_frame=2, frames=30 * (1 + i % 4), seed=i)
        write_video(folder / f"{i}.mp4", frames, options={"crf": "25", "preset": "ultrafast"})
    (folder / "broken.mp4").write_bytes(b"\0" * 2000)
    return folder


@pytest.mark.slow
def test_a_plan_of_all_inputs_is_what_the_run_then_does(videos: Path, tmp_path: Path, local_ray: None) -> None:
    prices = Prices(cpu_hour=7200.0, gb_month=1e9)
    planned = plan([str(videos)], WITHOUT_CLIP, sample=99, cores=2, prices=prices, quiet=True)
    curate([str(videos)], str(tmp_path / "out"), config=WITHOUT_CLIP, quiet=True)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.parquet"))
    select(str(tmp_path / "out"), Rules(name="all", where="true"))
    sharded = shard(str(tmp_path / "out"), "all", quiet=True)
    seen = status(Dataset(str(tmp_path / "out")))
    assert (planned.sources, planned.sampled, planned.rejected) == (9, 9, seen.rejected)
    assert planned.source_bytes == sum(path.stat().st_size for path in videos.iterdir())
    assert planned.video_s.value == pytest.approx(seen.video_s)
    assert (planned.clips.value, planned.clip_s.value) == (seen.clips, pytest.approx(seen.clip_s))
    assert {"decode", "cuts", "motion", "thumbnails", "scan", "text_area", "picture_hash"} <= planned.stages.keys()
    assert {"write", "shard", "duplicates"} <= planned.stages.keys()
    spent = {cost.stage: cost.cpu_s for cost in seen.costs}
    assert 0 < planned.stages["shard"].value < 3 * spent["shard"], "a run also starts the children that extract"
    assert sum(stage.value for stage in planned.stages.values()) == pytest.approx(planned.cpu_s.value, rel=1e-6)
    assert planned.wall_s.value == pytest.approx(planned.cpu_s.value / 2)
    assert planned.price.value == pytest.approx(2 * planned.cpu_s.value)
    assert 0.5 * written < planned.dataset_bytes.value < 2 * written
    assert planned.price_per_month.value == pytest.approx(planned.dataset_bytes.value + planned.shard_bytes.value)
    # The last blocks of a tar are empty, up to a record of 10,240 bytes; and a JSON with the rank among duplicates,
    # which a plan does not know, may need another block.
    totals = sharded.index["totals"]
    assert 0 <= totals["bytes"] - planned.shard_bytes.value <= 10_240 * totals["shards"] + 512 * totals["samples"]
    assert planned.memory_bytes > 50 << 20


@pytest.mark.slow
def test_a_sample_is_drawn_with_the_seed_and_has_a_range(videos: Path, monkeypatch, capsys) -> None:
    once, again = (plan([str(videos)], WITHOUT_CLIP, sample=4, seed=1, quiet=True) for _ in range(2))
    assert (once.video_s, once.clips, once.rejected) == (again.video_s, again.clips, again.rejected)
    assert once.cpu_s.low < once.cpu_s.value < once.cpu_s.high
    others = [plan([str(videos)], WITHOUT_CLIP, sample=4, seed=seed, quiet=True) for seed in (2, 3, 4)]
    assert any(other.video_s != once.video_s for other in others)
    option = ["--without", "similarity,aesthetic", "--sample", "1"]
    assert run_cli(monkeypatch, "plan", videos, *option, "--price-per-cpu-hour", "1", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["clips"]["high"] is None
    assert printed["prices"]["cpu_hour"] == 1
    assert run_cli(monkeypatch, "plan", videos, *option, "--price-per-cpu-hour", "1") == 0
    shown = capsys.readouterr().out
    assert "plan for 9 inputs" in shown
    assert all(word in shown for word in ("CPU time", "decode", "wall time", "memory per core", "shards", "price"))


@pytest.mark.slow
def test_captions_of_an_endpoint_take_their_time(videos: Path) -> None:
    """Many cores wait for the one worker that asks, with as many requests under way as it may send."""
    delay_s, in_flight = 0.4, 3
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    with CaptionServer(lambda _: says("a texture", usage=usage, delay_s=delay_s)) as server:
        video = {"base_url": server.url, "model": "m", "frames": None, "max_in_flight": in_flight}
        config = WITHOUT_CLIP.from_values(WITHOUT_CLIP.model_dump() | {"captioners": {"video": video}}, origin="test")
        planned = plan([str(videos)], config, sample=99, cores=10_000, quiet=True)
    clips = planned.clips.value
    assert len(server.requests) == clips
    assert (planned.tokens_in.value, planned.tokens_out.value) == (10 * clips, 2 * clips)
    assert planned.wall_s == planned.requests_s
    least_s = clips * delay_s / in_flight
    assert least_s * 0.99 < planned.requests_s.value < 2 * least_s + planned.stages["video"].value


@pytest.mark.parametrize(("clips", "kind"), [(3_000, "exact"), (3_000_000, "approximate")])
def test_the_search_for_duplicates_grows_with_its_slope(clips: int, kind: str) -> None:
    config = DuplicatesConfig()
    cost = measure_search(clips, 32, config)
    assert (cost.clips, cost.exponent) == (min(clips, 10_000), {"exact": 1.85, "approximate": 1.28}[kind])
    assert cost.at(cost.clips) == cost.cpu_s > 0
    assert cost.at(2 * cost.clips) == pytest.approx(2**cost.exponent * cost.cpu_s)
    assert math.isinf(cost.at(math.inf))
    assert cost.at(0) == 0
    assert measure_search(1, 8, config).clips == 1


def test_a_plan_needs_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no usable input"):
        plan([str(tmp_path / "in")], WITHOUT_CLIP, quiet=True)
