"""Training on data of other tools from the command line: as it is, and resumed to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipelines.cli import app
from tests.pipelines.test_train import SETTINGS, model_at
from tests.training import shards
from tests.training.test_foreign_shards import video2dataset, write_tar


def made(form: str, folder: Path) -> Path:
    """Six clips with texts in one of the forms that other tools write."""
    clip = shards.video(24)
    if form == "video2dataset":
        write_tar(folder / "00000.tar", video2dataset(clip, 8))
        return folder
    folder.mkdir()
    rows = [{"path": f"clip {i}.mp4", "caption": f"caption {i}"} for i in range(6)]
    for i, row in enumerate(rows):
        (folder / row["path"]).write_bytes(clip)
        if form == "folder":
            (folder / f"clip {i}.txt").write_text(row["caption"])
    if form == "folder":
        return folder
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["video2dataset", "folder", "list"])
def test_a_run_on_other_data_is_resumed_to_the_bit(form: str, tmp_path: Path) -> None:
    data, init = made(form, tmp_path / "data"), model_at(tmp_path / "init", "svd")

    def run(out: Path, steps: int) -> str:
        arguments = ["train", "--stage", "tiny-image-to-video", "--data", str(data), "--out", str(out)]
        for setting in [*SETTINGS, "data.crop=random", f"run.steps={steps}"]:
            arguments += ["--set", setting]
        result = CliRunner().invoke(app, [*arguments, "--init", str(init)])
        assert result.exit_code == 0, result.output
        return result.output

    run(tmp_path / "whole", 4)
    run(tmp_path / "resumed", 2)
    run(tmp_path / "resumed", 4)
    weights = [
        {path.name: load_file(path) for path in sorted((tmp_path / out / "model").rglob("*.safetensors"))}
        for out in ("whole", "resumed")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensors in weights[0].items():
        assert all(torch.equal(tensor, weights[1][name][key]) for key, tensor in tensors.items())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("whole", "resumed")
    ]
    assert losses[0] == losses[1]
