"""Ranks of a run as processes of their own. They are forked from a server that has imported what they need: a process
that imports torch by itself takes seconds to begin."""

import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.training.world import Stream, tiny_model, tiny_stage
from training.distributed import join, leave
from training.loop import Hooks, run_loop
from training.stages import overlay
from training.stopping import Stopped

STOPPED = 77
"""Exit status of a rank that was asked to stop."""


def start(out: Path, settings: dict[str, Any], world_size: int = 1) -> list[BaseProcess]:
    """A process per rank, as torchrun would start them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1",
        }
        environment = {name: str(value) for name, value in place.items()} if world_size > 1 else {}
        processes.append(context.Process(target=run, args=(out, settings, environment)))
        processes[-1].start()
    return list(processes)


def wait(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit statuses."""
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def run(out: Path, settings: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    stage = overlay(tiny_stage(), settings)
    process = join("cpu")
    model = tiny_model(stage)
    slowly = Hooks(on_log=lambda _: time.sleep(0.05))
    try:
        result = run_loop(
            stage, model, Stream(stage, rank=process.rank, world_size=process.world_size), out, process, hooks=slowly
        )
    except Stopped:
        sys.exit(STOPPED)
    if stage.run.strategy != "fsdp" and process.is_main:
        torch.save(model.unet.state_dict(), out / "weights.pt")
        (out / "resumed.json").write_text(json.dumps(result.resumed_at))
    leave()
