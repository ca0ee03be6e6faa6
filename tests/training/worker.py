"""One rank of a run, as a process of its own: python -m tests.training.worker OUT SETTINGS (JSON for `tiny_stage`)."""

import json
import sys
import time
from pathlib import Path

import torch

from tests.training.world import Stream, tiny_model, tiny_stage
from training.distributed import join, leave
from training.loop import Hooks, train
from training.stages import overlay


def main() -> None:
    out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    stage = overlay(tiny_stage(settings.pop("stage", "tiny-video")), settings)
    ranks = join("cpu")
    model = tiny_model(stage)
    slowly = Hooks(on_log=lambda _: time.sleep(0.05))
    trained = train(stage, model, Stream(stage, rank=ranks.rank, ranks=ranks.count), out, ranks, hooks=slowly)
    if stage.run.strategy != "fsdp" and ranks.first:
        torch.save(model.unet.state_dict(), out / "weights.pt")
        (out / "resumed.json").write_text(json.dumps(trained.resumed_at))
    leave()


if __name__ == "__main__":
    main()
