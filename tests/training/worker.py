"""Ranks of a run as processes of their own. They are forked from a server that has imported what they need: a process
that imports torch by itself takes seconds to begin."""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.training.world import Stream, tiny_model, tiny_stage
from training.data import loader
from training.distributed import join, leave
from training.loop import Hooks, run_loop
from training.run_folder import opened_run
from training.stages import overlay
from training.stopping import Stopped

STOPPED = 77
"""Exit status of a rank that was asked to stop."""


def start(
    out: Path, settings: dict[str, Any], world_size: int = 1, *, data: str | None = None, run_url: str | None = None
) -> list[BaseProcess]:
    """A process per rank, as torchrun would start them. Instead of the world's stream they read the shards `data`, and
    instead of `out` the run is in `run_url`; they know the object store of this process."""
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
        environment |= {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("AWS_", "GCSFS_", "NO_GCE_", "STORAGE_", "XDG_"))
        }
        processes.append(context.Process(target=run, args=(out, settings, environment, data, run_url)))
        processes[-1].start()
    return list(processes)


def wait(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit statuses."""
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def run(
    out: Path, settings: dict[str, Any], environment: dict[str, str], data: str | None, run_url: str | None
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    stage = overlay(tiny_stage(), settings)
    process = join("cpu")
    model = tiny_model(stage)
    place = {"rank": process.rank, "world_size": process.world_size}
    batches = Stream(stage, **place) if data is None else loader(data, stage.data, **place)

    def log(record: Mapping[str, Any]) -> None:
        time.sleep(0.05)
        if run_url is not None:  # for those who wait for a step
            with (out / "seen.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    try:
        with opened_run(run_url or out, process) as folder:
            result = run_loop(stage, model, batches, folder, process, hooks=Hooks(on_log=log))  # type: ignore[arg-type]
            folder.publish()
    except Stopped:
        os._exit(STOPPED)  # a child of multiprocessing would wait for the loader's workers, which outlive one SIGTERM
    if stage.run.strategy != "fsdp" and process.is_main:
        torch.save(model.unet.state_dict(), out / "weights.pt")
        (out / "resumed.json").write_text(json.dumps(result.resumed_at))
    leave()
