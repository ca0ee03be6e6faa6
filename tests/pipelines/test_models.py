"""Models in a run: checked before it starts, placed in workers or pools, captions through an endpoint that fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipmill import CurateConfig, curate
from clipmill.errors import UserError
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.dataset.tables import Dataset
from curation.scores.aesthetics import AestheticConfig
from curation.scores.clip_embedder import ClipEmbedderConfig
from demo.model import demo_config
from pipelines import cli
from pipelines.config import CaptionersConfig
from pipelines.graph import Node
from tests.caption_server import CaptionServer, refused_url, says
from tests.curation.models import tiny_clip
from tests.pipelines.corpora import content, many_small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = many_small(tmp_path_factory.mktemp("models") / "in", 3)
    (folder / "0000.txt").write_text("a grey texture drifts")
    (folder / "0001.txt").write_bytes(b"\xff\xfe\xfd no text")
    return folder


def clips(dataset: str | Path) -> list[dict[str, Any]]:
    with Dataset(str(dataset)).connect() as connection:
        return connection.sql("SELECT * FROM joined ORDER BY uri").to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def scored(videos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    out = str(tmp_path_factory.mktemp("models") / "scored")
    result = curate([str(videos)], out, config=demo_config(), quiet=True)
    assert result.duplicates is not None
    return out


def test_scores_captions_and_embeddings_are_in_the_table(scored: str):
    described, unreadable, silent = clips(scored)
    assert [c["source"] for c in described["captions"]] == ["sidecar"]
    assert -1 < described["similarity"] < 1
    assert described["similarity_captions"] == [described["similarity"]]
    assert all(1 < clip["aesthetic"] < 10 for clip in (described, unreadable, silent))
    assert len(described["embedding"]) == 192
    assert (unreadable["similarity"], unreadable["captions"][0]["text"]) == (None, None)
    assert "no caption has text" in unreadable["similarity_error"]
    assert silent["similarity_error"] == "the clip has no caption"
    assert all(clip["duplicate_rank"] == 0 for clip in (described, unreadable, silent))
    kept = json.loads((Path(scored) / "models.json").read_text())
    assert "demo model" in kept["notices"][0]


def test_a_pool_of_actors_gives_the_same(scored: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clipmill.pipeline._LARGE_BYTES", 0)
    monkeypatch.setattr("pipelines.graph.cluster_nodes", lambda: [Node(cpus=3)])  # two are there: one for the actor
    curate([str(videos)], str(tmp_path / "pool"), config=demo_config(), quiet=True)
    for one, other in zip(clips(scored), clips(tmp_path / "pool"), strict=True):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)
        assert one["aesthetic"] == pytest.approx(other["aesthetic"], abs=1e-4)
    assert content(scored)["sources"] == content(str(tmp_path / "pool"))["sources"]


def test_missing_weights_stop_the_run_before_there_is_anything(videos: Path, tmp_path: Path, local_ray: None):
    config = CurateConfig(clip_embedder=ClipEmbedderConfig(model=str(tmp_path / "nothing" / "here"), pretrained=None))
    with pytest.raises(UserError, match="no CLIP model in"):
        curate([str(videos)], str(tmp_path / "out"), config=config, quiet=True)
    assert not (tmp_path / "out").exists()
    without = config.model_copy(update={"without": ("aesthetic", "similarity")})
    result = curate([str(videos)], str(tmp_path / "out"), config=without, quiet=True)
    assert (result.status.clips, result.status.left_out) == (3, ("aesthetic", "similarity"))
    assert result.duplicates is not None
    assert result.duplicates.by == "picture_hash", "the duplicates that need no weights"
    assert {clip["similarity_error"] for clip in clips(tmp_path / "out")} == {"left out: --without similarity"}


def test_a_head_for_another_model_is_an_error_with_both(
    videos: Path, tmp_path: Path, real_weights: Path, local_ray: None
):
    head = str(real_weights / "sa_0_4_vit_l_14_linear.pth")
    config = demo_config().model_copy(update={"aesthetic": AestheticConfig(head=head)})
    with pytest.raises(UserError, match=r"l_14_linear.pth' expects embeddings of width 768, but CLIP .* gives 192"):
        curate([str(videos)], str(tmp_path / "out"), config=config, quiet=True)


def test_weights_of_another_model_do_not_mix(videos: Path, tmp_path: Path, local_ray: None):
    config = demo_config().model_copy(
        update={
            "clip_embedder": ClipEmbedderConfig(model=str(tiny_clip(tmp_path / "a" / "clip"))),
            "without": ("aesthetic",),
        }
    )
    curate([str(videos)], str(tmp_path / "out"), config=config, limit=1, quiet=True)
    other = ClipEmbedderConfig(model=str(tiny_clip(tmp_path / "b" / "clip", seed=1)))
    with pytest.raises(UserError, match="was started with different settings"):
        curate(
            [str(videos)], str(tmp_path / "out"), config=config.model_copy(update={"clip_embedder": other}), quiet=True
        )
    moved = (tmp_path / "a" / "clip").rename(tmp_path / "clip")  # the same weights in another place are no other model
    again = config.model_copy(update={"clip_embedder": ClipEmbedderConfig(model=str(moved))})
    assert curate([str(videos)], str(tmp_path / "out"), config=again, quiet=True).sources_done_now == 2


def test_an_endpoint_that_is_down_costs_captions_only_and_has_its_own_exit_code(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_ray: None
):
    out = tmp_path / "out"

    def run(url: str, *command: str) -> int:
        settings = {"base_url": url, "model": "any", "retries": 0, "timeout_s": 20}
        captioners = {"video": settings, "merged": settings}
        (tmp_path / "config.yaml").write_text(
            json.dumps({"captioners": captioners, "without": ["aesthetic", "similarity"]})
        )
        command = command or ("curate", str(videos), "--out", str(out))
        monkeypatch.setattr("sys.argv", ["clipmill", *command, "--config", str(tmp_path / "config.yaml")])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert run(refused_url()) == cli.CAPTIONS_FAILED
    assert "captions failed: 3 of video" in capsys.readouterr().err
    rows = clips(out)
    assert len(rows) == 3
    assert all(clip["text_area"] is not None for clip in rows)
    assert [[c["source"] for c in clip["captions"]][-2:] for clip in rows] == [["video", "merged"]] * 3
    assert all(c["text"] is None and c["error"] for clip in rows for c in clip["captions"][-2:])
    tables = content(str(out))
    with CaptionServer([says("a texture that drifts")]) as server:
        assert run(server.url) == cli.CAPTIONS_FAILED, "nothing is tried again unasked"
        again = ("caption", str(out), "--captioner", "video")
        assert run(server.url, *again) == 0
        assert server.requests == []
        assert run(server.url, *again, "--retry-failed") == 0
        captions = [{c["source"]: c["text"] for c in clip["captions"]} for clip in clips(out)]
        assert [c["video"] for c in captions] == ["a texture that drifts"] * 3
        assert run(server.url) == 0, "what has nothing to merge has not failed"
    assert content(str(out)) == tables, "clips are left alone"


def test_a_head_of_another_weight_does_not_mix(videos: Path, tmp_path: Path, local_ray: None):
    def config(folder: str, bias: float) -> CurateConfig:
        path = tmp_path / folder / "head.safetensors"
        path.parent.mkdir()
        save_file({"weight": torch.zeros(1, 192), "bias": torch.full((1,), bias)}, path)
        return demo_config().model_copy(update={"aesthetic": AestheticConfig(head=str(path))})

    curate([str(videos)], str(tmp_path / "out"), config=config("a", 5), limit=1, quiet=True)
    with pytest.raises(UserError, match=r"aesthetic: was .*, now"):
        curate([str(videos)], str(tmp_path / "out"), config=config("b", 9), quiet=True)


def test_a_captioner_without_an_endpoint_is_said_before_work_starts(videos: Path, tmp_path: Path, local_ray: None):
    config = demo_config().model_copy(
        update={"captioners": CaptionersConfig(video=VideoConfig(), merged=MergedConfig())}
    )
    with pytest.raises(UserError, match="base_url and model not set"):
        curate([str(videos)], str(tmp_path / "out"), config=config, quiet=True)
    assert not (tmp_path / "out").exists()
