"""The paper as a script, end to end at tiny size."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from demo.collection import collection
from demo.model import demo_config
from demo.parts import UNET, write_initial
from pipelines.recipes import svd_paper
from pipelines.recipes.steps import Recipe, command
from pipelines.select import PRESETS, load_preset
from svd.checkpoint import read_config

STAGES = ("noise-swap", "image", "video", "video-base", "text-to-video", "image-to-video-base", "image-to-video")
TRAINING = {
    "model": {"overrides": {name: list(v) if isinstance(v, tuple) else v for name, v in UNET.items()}},
    "data": {"workers": 0, "batch_size": 2},
    "run": {"steps": 2, "batch_size": 2, "save_every": 2, "sample_every": 2, "sample_steps": 2},
}


@pytest.mark.slow
def test_the_paper_runs_from_videos_to_an_image_to_video_model_and_again_without_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_ray: None
):
    collection(tmp_path / "videos", videos=4)
    models = {"clip_embedder", "aesthetic", "duplicates"}
    curation: dict[str, Any] = demo_config().model_dump(mode="json", include=models)
    curation["captioners"] = {"coca": None, "video": None, "merged": None}  # the footage has sidecars
    (tmp_path / "curation.yaml").write_text(json.dumps(curation))
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    initial, out = write_initial(tmp_path / "initial"), tmp_path / "out"
    given = ["svd_paper", str(tmp_path / "videos"), str(out), "--tiny", "--device", "cpu"]
    given += ["--init", str(initial), "--image-encoder", str(initial)]
    given += ["--config", str(tmp_path / "curation.yaml"), "--training", str(tmp_path / "training.yaml")]
    monkeypatch.setattr("sys.argv", given)
    # Of so few clips the paper's shares leave none, and no rendered video is 1024 px wide.
    for name in ("filtered", "best"):
        monkeypatch.setattr(svd_paper, name.upper(), Rules(name=name, rules={"aesthetic": {"drop_lowest": "50%"}}))

    command(svd_paper.svd_paper, svd_paper.__doc__)
    model = Path(capsys.readouterr().out.strip())
    assert model == out / "runs" / "image-to-video" / "model"
    assert [read_config(out / "runs" / stage / "model").task for stage in STAGES] == [
        *["image"] * 2, *["text-to-video"] * 3, *["image-to-video"] * 2,
    ]  # fmt: skip
    with Dataset(str(out / "dataset")).connect() as connection:
        (scored,) = connection.execute("SELECT count(similarity) FROM clips").fetchone() or (0,)
    assert scored > 0
    written = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("model/*") if path.is_file()}
    command(svd_paper.svd_paper, None)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_recipe_selects_as_the_preset_does():
    preset, ours = load_preset("svd-paper", PRESETS).rules, svd_paper.FILTERED.rules
    assert ours == {name: rule for name, rule in preset.items() if name != "duration_s"}
    assert svd_paper.CURATION.scan.spans.min_s == preset["duration_s"].min


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init": Path("nowhere")}, "no model at nowhere"),
        ({"training": {"run": {"stepz": 2}}}, "--training: run: unknown configuration key 'stepz'"),
    ],
)
def test_mistakes_in_training_are_found_before_curation(tmp_path: Path, changes: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        Recipe(**{"videos": (), "out": tmp_path / "out", "init": tmp_path, "image_encoder": tmp_path, **changes})
