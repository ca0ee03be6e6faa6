"""Cost estimate of a stage: parameters, FLOPs, memory and training time (`clipmill train --dry-run`)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.model import NEEDS
from svd.unet import Block, UNet
from training.distributed import LARGE
from training.stages import Stage
from training.trainable import freeze_untrained

PEAK_FLOPS, ASSUMED_MFU = 989e12, 0.4
"""Dense bf16 peak of an H100 or H200, and the model FLOPs utilization (MFU) to assume."""
_TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate for one run. Bytes are per GPU, for the one with the highest use, excluding allocator fragmentation."""

    parameters: int
    trained_parameters: int
    forward_flops: float
    """UNet forward pass, one sample."""
    encode_flops: float
    """Autoencoder encoding, one sample; skipped with cached latents."""
    step_flops: float
    """FLOPs executed per step over all ranks: encoding, forward, backward and, with activation checkpointing,
    recomputation.
    """
    model_flops: float
    """Model FLOPs per step over all ranks: forward and backward, without encoding or recomputation. MFU is based on
    these.
    """
    weights_bytes: float
    """Weights, gradients, both AdamW moments and the EMA in float32, divided by the number of GPUs if sharded."""
    activations_bytes: float
    sharded: bool

    def days(self, steps: int, gpus: int) -> float:
        """Training time on `gpus` H100 or H200 at 40 % MFU."""
        return steps * self.step_flops / (gpus * PEAK_FLOPS * ASSUMED_MFU) / 86400


def estimate(stage: Stage, *, gpus: int = 1, autoencoder: AutoencoderConfig | None = None) -> Estimate:
    """Estimate on the meta device, which computes shapes only: runs the network's forward pass on one rank's batch and
    tracks every tensor saved for backward.
    """
    with torch.device("meta"):
        unet = UNet(stage.model.config())
    freeze_untrained(unet, stage)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    config = autoencoder or AutoencoderConfig.preset("svd")
    saved, flops = _forward(unet, stage, config)
    size = (1, stage.data.frames, 3, stage.data.height_px, stage.data.width_px)
    encode_flops = _encode_flops(config, size)
    per_sample = flops / stage.data.batch_size
    # Backward costs one forward for the activation gradients and one for the gradients of trainable weights.
    passes = 2 + trained / parameters
    recomputed = 1 if stage.model.checkpointing else 0
    share = stage.run.image_share
    model_flops = stage.run.batch_size * per_sample * passes * (1 - share + share / stage.data.frames)
    strategy = stage.run.strategy
    sharded = gpus > 1 and (strategy == "fsdp" or (strategy == "auto" and parameters >= LARGE))
    ema = 4 if stage.optimizer.ema is not None else 0
    weights = 4 * parameters + (4 + 8 + ema) * trained
    return Estimate(
        parameters=parameters,
        trained_parameters=trained,
        forward_flops=per_sample,
        encode_flops=encode_flops,
        step_flops=stage.run.batch_size * ((passes + recomputed) * per_sample + encode_flops),
        model_flops=model_flops,
        weights_bytes=weights / (gpus if sharded else 1),
        activations_bytes=saved,
        sharded=sharded,
    )


def _forward(unet: UNet, stage: Stage, autoencoder: AutoencoderConfig) -> tuple[float, float]:
    """Bytes saved for backward and FLOPs, for one batch."""
    config, data, batch = unet.config, stage.data, stage.data.batch_size
    dtype = torch.bfloat16 if stage.run.precision == "bf16" else torch.float32
    unet = unet.to(dtype)
    factor = autoencoder.factor
    x = torch.empty(
        batch, data.frames, config.in_channels, data.height_px // factor, data.width_px // factor, dtype=dtype,
        device="meta", requires_grad=True,
    )  # fmt: skip
    tokens = {"text_encoder": _TOKENS, "image_encoder": 2 if config.learned_mask else 1}[NEEDS[stage.task]]
    arguments: dict[str, Any] = {
        "context_BNC": torch.empty(batch, tokens, config.context_width, device="meta", dtype=dtype)
    }
    if config.ids:
        arguments["ids_BK"] = torch.empty(batch, len(config.ids), device="meta")
    saved = _SavedTensors(unet)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda x: x):
        unet(x, torch.empty(batch, device="meta"), **arguments)
    return saved.total(checkpointing=stage.model.checkpointing), float(counter.get_total_flops())


class _SavedTensors:
    """Bytes of tensors saved for backward, excluding weights, per block."""

    def __init__(self, unet: UNet) -> None:
        self._weights = {id(parameter) for parameter in unet.parameters()}
        self._seen: set[int] = set()
        self._alive: list[Tensor] = []
        self._bytes, self._block_started = 0.0, 0.0
        self._blocks: list[float] = []
        self._inputs = 0.0
        for module in unet.modules():
            if isinstance(module, Block):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # keep the storage alive so that its address is not reused
            self._bytes += storage.nbytes()
        return tensor

    def _enter(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._block_started = self._bytes
        self._inputs += arguments[0].untyped_storage().nbytes()

    def _leave(self, *_: Any) -> None:
        self._blocks.append(self._bytes - self._block_started)

    def total(self, *, checkpointing: bool) -> float:
        """With activation checkpointing every block keeps its input, and only one block at a time keeps the rest."""
        if not checkpointing:
            return self._bytes
        return self._bytes - sum(self._blocks) + self._inputs + max(self._blocks)


def _encode_flops(config: AutoencoderConfig, size: tuple[int, ...]) -> float:
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            autoencoder.encode(torch.empty(size))
    return float(counter.get_total_flops())
