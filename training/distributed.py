"""Distributed training with DDP or FSDP2 (`fully_shard`), in one process, under torchrun or on Ray Train workers."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clipmill.errors import UserError
from svd.unet import Block, UNet

_T = TypeVar("_T")
Strategy = Literal["none", "ddp", "fsdp"]
LARGE = 10**9
"""Parameter count above which `auto` selects FSDP2."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """Rank and device of this process."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join(device: str | None = None) -> Process:
    """Join torchrun's process group, or reuse an existing one (Ray Train); `device` defaults to cuda if available.

    A process that trains alone has no group. Gloo's threads start OpenMP threads of their own when they copy a large
    object, such as a checkpoint's index, and with more OpenMP threads than cores the runtime lets all of them sleep
    between operations: on two cores, a small network then trained at two thirds of its speed.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group(_backend(place))
    if not dist.is_initialized():
        return Process(rank=0, world_size=1, device=place)
    return Process(rank=dist.get_rank(), world_size=dist.get_world_size(), device=place)


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def leave() -> None:
    """Destroy the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def resolve(strategy: str, unet: UNet, world_size: int) -> Strategy:
    """Resolve `auto`: `none` for one rank, else FSDP2 for large networks and DDP for others.

    Raises UserError for several ranks without a strategy.
    """
    if strategy == "none" and world_size > 1:
        raise UserError(f"run.strategy 'none' expects a single process, got {world_size}; choose ddp, fsdp or auto")
    if strategy != "auto":
        return strategy  # type: ignore[return-value]
    if world_size == 1:
        return "none"
    return "fsdp" if sum(parameter.numel() for parameter in unet.parameters()) >= LARGE else "ddp"


def distribute(unet: UNet, strategy: Strategy, *, bf16: bool, unused: bool) -> nn.Module:
    """Wrap `unet` for training. `unused`: whether some batches leave parameters without a gradient. DDP and FSDP2 need
    a process group, so a process that uses them alone gets one.

    FSDP2 modifies `unet` in place: its parameters become DTensors, gathered block by block.
    """
    if strategy != "none" and not dist.is_initialized():
        device = next(unet.parameters()).device
        dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)
    if strategy == "ddp":
        return DistributedDataParallel(unet, find_unused_parameters=unused, gradient_as_bucket_view=True)
    if strategy == "fsdp":
        # Do not cast inputs: bf16 would round noise levels and ids; autocast handles the rest.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        options: dict[str, Any] = {"mp_policy": policy} if bf16 else {}
        for module in unet.modules():
            if isinstance(module, Block):
                fully_shard(module, **options)
        fully_shard(unet, **options)
    return unet


@contextmanager
def accumulating(network: nn.Module, last: bool) -> Iterator[None]:
    """Reduce gradients across ranks only in the `last` backward pass of a step."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
        yield
    elif isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def reshard(unet: UNet) -> None:
    """Reshard weights after a forward pass without backward: FSDP2 keeps root parameters gathered for the backward pass
    and would reuse the stale values.
    """
    for module in unet.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(value: Tensor) -> Tensor:
    """The local shard of a possibly sharded tensor, as a view."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_tensor(value: Tensor) -> Tensor:
    """Gather a possibly sharded tensor; a collective, so all ranks must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def new_group() -> dist.ProcessGroup | None:
    """Another group of all ranks, whose messages do not interleave with those of a training step; None if this process
    trains alone.
    """
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo")) if dist.is_initialized() else None


def leave_group(group: dist.ProcessGroup | None) -> None:
    """End a group of `new_group`, whose threads run until then."""
    if group is not None and dist.is_initialized():
        dist.destroy_process_group(group)


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier(group=group)


def all_reduce(value: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    """Replace a tensor by the sum of those of all ranks, or by what another operation makes of them."""
    if dist.is_initialized():
        dist.all_reduce(value, operation)


def once(compute: Callable[[], _T]) -> _T:
    """Compute on the first rank and broadcast the result, or the exception, to all."""
    if not dist.is_initialized():
        return compute()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast("_T", outcome[0])


def gather(value: Any) -> list[Any]:
    """Gather an object from every rank, in rank order, on all of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
