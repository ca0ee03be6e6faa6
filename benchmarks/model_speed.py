"""Speed and memory of the UNet compared with diffusers', with the same weights and inputs, in one run.

    python -m benchmarks.model_speed [--compile] [--runs N]

On the CPU: the `tiny` network in float32 on one thread, CPU seconds, and bytes saved for the backward pass. With a GPU
also the full network in bfloat16: seconds, peak memory, and utilization relative to the GPU's measured matrix
multiplication rate. Ratios are their time divided by ours.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import interleaved, report
from svd.config import UNetConfig
from svd.unet import UNet
from tests.svd.networks import diffusers_twin, inputs, randomise

CPU_INPUT: dict[str, Any] = {"samples": 2, "frames": 8, "size": (32, 32)}
GPU_INPUTS: dict[str, dict[str, Any]] = {
    "14x320x576": {"samples": 1, "frames": 14, "size": (40, 72)},
    "25x576x1024": {"samples": 1, "frames": 25, "size": (72, 128)},
}
TFLOP = {"14x320x576": (12.14, 36.4), "25x576x1024": (79.95, 239.7)}
"""Forward, and forward plus backward; a multiply-add counts as 2."""

Run = Callable[[], Tensor]
Action = Callable[[], Any]


def pair(preset: str, device: str, dtype: torch.dtype, shape: dict[str, Any]) -> tuple[UNet, Any, Run, Run]:
    """Our network and diffusers' with the same weights, and a forward pass of each."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset(preset))
    unet = unet.to_empty(device="cpu")
    randomise(unet)
    unet = unet.to(device, dtype).train()
    twin = diffusers_twin(unet).train()
    x, c_noise, kwargs = inputs(unet, **shape)
    x, c_noise = x.to(device, dtype), c_noise.to(device)
    context, ids = kwargs["context_BNC"].to(device, dtype), kwargs["ids_BK"].to(device)
    return (
        unet,
        twin,
        lambda: unet(x, c_noise, context_BNC=context, ids_BK=ids),
        lambda: twin(x, c_noise, context, ids, return_dict=False)[0],
    )


def without_gradient(run: Run) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            run()

    return forward


def step(network: nn.Module, run: Run) -> Callable[[], None]:
    """Forward and backward pass."""

    def train() -> None:
        run().float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return train


def kept_mib(run: Run) -> float:
    """MiB saved for the backward pass of `run`, without parameters; each storage counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not (tensor._base is not None and tensor._base.is_leaf):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    return sum(kept.values()) / 2**20


def on_cpu(runs: int, *, compiled: bool) -> tuple[list[tuple[Any, ...]], dict[str, float]]:
    torch.set_num_threads(1)
    unet, twin, ours, theirs = pair("tiny", "cpu", torch.float32, CPU_INPUT)
    rows: list[tuple[Any, ...]] = []
    ratios: dict[str, float] = {}

    def compare(
        name: str, label: str, our_action: Callable[[], Any], their_action: Callable[[], Any], *memory: str
    ) -> None:
        our_action()
        their_action()
        seconds = interleaved(runs, ours=our_action, theirs=their_action)
        ratios[name] = round(seconds["theirs"] / seconds["ours"], 3)
        rows.append((label, seconds["ours"], seconds["theirs"], ratios[name], *(memory or ("", ""))))

    compare("forward_ratio", "forward", without_gradient(ours), without_gradient(theirs))
    memory = (f"{kept_mib(ours):.0f}", f"{kept_mib(theirs):.0f}")
    compare("train_ratio", "forward + backward", step(unet, ours), step(twin, theirs), *memory)
    unet.checkpointing = True
    twin.enable_gradient_checkpointing()
    memory = (f"{kept_mib(ours):.0f}", f"{kept_mib(theirs):.0f}")
    compare("checkpoint_ratio", "the same, checkpointing", step(unet, ours), step(twin, theirs), *memory)
    unet.checkpointing = False
    twin.disable_gradient_checkpointing()
    if compiled:
        unet.compile()
        twin.compile()
        compare("compiled_forward_ratio", "forward, torch.compile", without_gradient(ours), without_gradient(theirs))
        compare("compiled_train_ratio", "forward + backward, torch.compile", step(unet, ours), step(twin, theirs))
    return rows, ratios


def matmul_rate() -> float:
    """Measured TFLOP/s of multiplying 8192 x 8192 matrices in bfloat16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds, _ = timed(lambda: a @ b, runs=20)
    return 2 * 8192**3 / seconds / 1e12


def timed(action: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Median seconds and peak GiB on the GPU, after two warm-up runs."""
    for _ in range(2):
        action()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(runs):
        torch.cuda.synchronize()
        before = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30


def on_gpu(runs: int) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    rows: list[tuple[Any, ...]] = []
    peak = matmul_rate()
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "matmul_tflops": round(peak, 1)}
    for size, shape in GPU_INPUTS.items():
        unet, twin, ours, theirs = pair("svd", "cuda", torch.bfloat16, shape)

        def measure(name: str, tflop: float, action: Callable[[], Any], size: str = size) -> None:
            try:
                seconds, memory_gib = timed(action, runs)
            except torch.OutOfMemoryError:
                figures[f"{size} {name}"] = None
                rows.append((f"{size} {name}", "out of memory", "", ""))
            else:
                share = tflop / seconds / peak
                figures[f"{size} {name}"] = {"s": seconds, "gib": round(memory_gib, 2), "mfu": round(share, 3)}
                rows.append((f"{size} {name}", seconds, f"{memory_gib:.1f}", f"{share:.1%}"))
            gc.collect()
            torch.cuda.empty_cache()

        forward, train = TFLOP[size]
        measure("forward, diffusers", forward, without_gradient(theirs))
        measure("train, diffusers", train, step(twin, theirs))
        twin.enable_gradient_checkpointing()
        measure("train, diffusers, checkpointing", train, step(twin, theirs))
        twin.disable_gradient_checkpointing()
        for mode in ("eager", "compiled"):
            if mode == "compiled":
                unet.compile()
            measure(f"forward, {mode}", forward, without_gradient(ours))
            measure(f"train, {mode}", train, step(unet, ours))
            unet.checkpointing = True
            measure(f"train, {mode}, checkpointing", train, step(unet, ours))
            unet.checkpointing = False
        del unet, twin, ours, theirs
        torch.compiler.reset()
    return rows, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each model; the median is reported")
    parser.add_argument("--compile", action="store_true", help="also use torch.compile on the CPU (takes minutes)")
    arguments = parser.parse_args()
    cpu_rows, cpu = on_cpu(arguments.runs, compiled=arguments.compile)
    figures: dict[str, Any] = {"cpu": cpu, "gpu": None}
    columns = ("tiny, CPU", "ours s", "diffusers s", "ratio", "ours keeps MiB", "diffusers keeps MiB")
    if torch.cuda.is_available():
        gpu_rows, figures["gpu"] = on_gpu(arguments.runs)
        report("Full UNet on the GPU", ("what", "s", "peak GiB", "share of peak"), gpu_rows, figures["gpu"])
    report("UNet beside diffusers'", columns, cpu_rows, figures)


if __name__ == "__main__":
    main()
