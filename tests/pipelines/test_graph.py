"""Placement that is read off the stages, on clusters of many shapes; and what Ray makes of it."""

from dataclasses import replace
from typing import Any

import pytest

from clipmill.errors import RunStopped, UserError
from clipmill.pipeline import Resources, Stage, check_stages
from curation.captioners.coca import CocaConfig
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.dataset.tables import Dataset
from pipelines.config import CaptionersConfig, CurateConfig
from pipelines.fence import Fence
from pipelines.graph import Node, Operator, place, run
from pipelines.parts import scan_stage, write_stage
from pipelines.scoring import clip_stages
from tests.processes import gone_within

LARGE = {"clip_embedder": 1_710_000_000, "coca": 2_550_000_000}
CAPTIONED = CurateConfig(captioners=CaptionersConfig(coca=CocaConfig(), video=VideoConfig(), merged=MergedConfig()))


def stages_of(config: CurateConfig, weights: dict[str, int]) -> list[Stage]:
    resources = {name: Resources(num_gpus=1, max_cpus=4, memory_bytes=size) for name, size in weights.items()}
    write = write_stage(Dataset("out"), Fence(url="out", run=""), sources=8)
    return [scan_stage(config), *clip_stages(config, resources), write]


def shapes(operators: list[Operator]) -> list[tuple[str, str]]:
    """(stages, workers) of each: `2 x (4 CPU, 0.5 GPU)` for a pool, `tasks` or `1 task` otherwise."""

    def size(operator: Operator) -> str:
        taken = f"{operator.num_cpus:g} CPU" + (f", {operator.num_gpus:g} GPU" if operator.num_gpus else "")
        if operator.pool:
            return f"{operator.workers} x ({taken})"
        return f"{operator.workers or ''} task ({taken})".strip()

    return [(operator.name, size(operator)) for operator in operators]


def test_small_models_are_tasks_in_one_worker_with_all_that_look_at_clips():
    small = place(stages_of(CurateConfig(), {"clip_embedder": 20_000_000}), [Node(cpus=16)])
    assert shapes(small) == [
        ("scan", "task (1 CPU)"),
        ("clip_embedder, similarity, aesthetic, text_area, previews", "task (1 CPU)"),
        ("write", "task (0.1 CPU)"),
    ]
    assert [operator.batch_size for operator in small] == [1, 4, 8]


def test_a_large_model_gets_a_pool_and_the_text_detector_does_not_hold_it_up():
    assert shapes(place(stages_of(CurateConfig(), LARGE), [Node(cpus=16)])) == [
        ("scan", "task (1 CPU)"),
        ("clip_embedder, similarity, aesthetic", "3 x (4 CPU)"),
        ("text_area, previews", "task (1 CPU)"),
        ("write", "task (0.1 CPU)"),
    ]


def test_models_share_the_gpus_and_endpoints_have_one_worker():
    operators = place(stages_of(CAPTIONED, LARGE), [Node(cpus=16, gpus=1), Node(cpus=16, gpus=1)])
    assert shapes(operators) == [
        ("scan", "task (1 CPU)"),
        ("coca", "2 x (1 CPU, 0.5 GPU)"),
        ("video, merged", "1 task (0 CPU)"),
        ("clip_embedder, similarity, aesthetic", "2 x (1 CPU, 0.5 GPU)"),
        ("text_area, previews", "task (1 CPU)"),
        ("write", "task (0.1 CPU)"),
    ]
    assert [operator.batch_size for operator in operators] == [1, 16, 4, 16, 4, 8]


@pytest.mark.parametrize(
    ("node_cpus", "actors", "cpus"),
    [([3], 1, 1), ([4], 1, 2), ([16], 3, 4), ([2, 2, 2], 2, 2), ([1, 1, 1, 1], 2, 1), ([64, 64], 31, 4)],
)
def test_actors_fit_on_a_node_and_leave_cpus_for_the_scans(node_cpus: list[int], actors: int, cpus: int):
    pool = place(stages_of(CurateConfig(), LARGE), [Node(cpus=cpus) for cpus in node_cpus])[1]
    assert (pool.pool, pool.workers, pool.num_cpus) == (True, actors, cpus)


@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 5, 8, 64])
@pytest.mark.parametrize("config", [CurateConfig(), CAPTIONED])
def test_on_no_machine_do_pools_take_the_last_cpu(config: CurateConfig, cpus: int, gpus: int):
    """An actor keeps its CPUs: without one left no scan would ever start."""
    operators = place(stages_of(config, LARGE), [Node(cpus=cpus, gpus=gpus)])
    kept = sum(operator.num_cpus * (operator.workers or 0) for operator in operators if operator.pool)
    assert kept + 1 <= cpus
    assert sum(operator.num_gpus * (operator.workers or 0) for operator in operators) <= gpus
    pools = [operator for operator in operators if operator.pool]
    if gpus and cpus > 2:
        assert pools
        assert all(operator.num_gpus for operator in pools)


def test_two_cpus_and_a_gpu_are_enough_for_a_pool():
    assert ("clip_embedder, similarity, aesthetic", "1 x (1 CPU, 1 GPU)") in shapes(
        place(stages_of(CurateConfig(), LARGE), [Node(cpus=2, gpus=1)])
    )


def test_a_model_that_fits_nowhere_is_an_error_before_the_run():
    with pytest.raises(UserError, match=r"stage clip_embedder.* needs 1\.7 GB for weights, but Ray has 1\.0 GB"):
        place(stages_of(CurateConfig(), LARGE), [Node(cpus=16, memory_bytes=1e9)] * 8)
    with pytest.raises(
        UserError, match=r"stage coca and clip_embedder.* needs 4\.3 GB for weights, but Ray has 3\.0 GB"
    ):
        place(stages_of(CAPTIONED, LARGE), [Node(cpus=16, memory_bytes=3e9)])
    with pytest.raises(UserError, match=r"stage scan needs 1 CPUs, but the largest node of the Ray cluster has 0"):
        place(stages_of(CurateConfig(), {}), [Node(cpus=0)])


@pytest.mark.parametrize("without", [(), ("aesthetic",), ("aesthetic", "similarity"), ("text_area",)])
@pytest.mark.parametrize("config", [CurateConfig(), CAPTIONED])
def test_every_configuration_fills_every_column(config: CurateConfig, without: tuple[str, ...]):
    check_stages(stages_of(config.model_copy(update={"without": without}), LARGE), ["source"])


def noting_its_task(name: str, **declared: Any) -> Stage:
    """A stage that adds to each item the task that it ran in. Workers cannot import tests: it has to be a closure."""

    def load(device: str) -> Any:
        import ray

        return lambda items: [(*item, ray.get_runtime_context().get_task_id()) for item in items]

    return Stage(name=name, needs=(), gives=(), load=load, **declared)


@pytest.mark.slow
def test_ray_keeps_scans_apart_from_batches_and_batches_from_larger_ones(local_ray: None):
    scan, score = noting_its_task("scan"), noting_its_task("score", batch_size=2)
    write = noting_its_task("write", batch_size=4, resources=Resources(num_cpus=0.1))
    answers = list(run([scan, score, write], [(number,) for number in range(4)], given=()))
    assert sorted(number for number, *_ in answers) == [0, 1, 2, 3]
    assert [len({answer[stage] for answer in answers}) for stage in (1, 2, 3)] == [4, 2, 1]

    def full(items: list[Any]) -> list[Any]:
        raise RunStopped("cannot write /tmp: the disk is full")

    full_disk = replace(score, load=lambda device: full)
    with pytest.raises(RunStopped, match=r"^cannot write /tmp: the disk is full$"):
        list(run([scan, full_disk, write], [(0,), (1,)], given=()))


@pytest.mark.slow
def test_a_pool_and_a_single_worker_stay_apart_from_the_tasks_around_them(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.graph.cluster_nodes", lambda: [Node(cpus=3)])
    stages = [
        noting_its_task("scan"),
        noting_its_task("ask", batch_size=2, resources=Resources(workers=1)),
        noting_its_task("clip", batch_size=2, resources=Resources(memory_bytes=300 << 20)),
    ]
    assert [operator.pool for operator in place(stages, [Node(cpus=3)])] == [False, False, True]
    answers = list(run(stages, [(number,) for number in range(4)], given=()))
    scans, asks, actors = ({answer[stage] for answer in answers} for stage in (1, 2, 3))
    assert (len(scans), len(asks)) == (4, 2)
    assert not actors & asks


@pytest.mark.slow
def test_calls_of_a_stage_that_waits_overlap_and_leave_the_cpus_to_tasks(local_ray: None):
    """Three calls meet; with fewer at a time each would wait for the others in vain. Their process ends too."""

    def load(device: str) -> Any:
        import os
        import threading

        together = threading.Barrier(3)

        def meet(items: list[Any]) -> list[Any]:
            try:
                together.wait(60)
            except threading.BrokenBarrierError:
                return [(*item, "alone") for item in items]
            return [(*item, os.getpid()) for item in items]

        return meet

    waiting = Stage(name="ask", needs=(), gives=(), load=load, resources=Resources(workers=1, calls=3))
    stages = [noting_its_task("scan"), waiting, noting_its_task("write", resources=Resources(num_cpus=0.1))]
    (_, ask, _) = place(stages, [Node(cpus=1)])
    assert (ask.num_cpus, ask.workers, ask.calls) == (0, 1, 3)
    answers = sorted(run(stages, [(number,) for number in range(6)], given=()))
    assert [number for number, *_ in answers] == list(range(6))
    (pid,) = {pid for _, _, pid, _ in answers}
    assert gone_within(60, [pid])
