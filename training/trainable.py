"""Which weights of a network a stage trains, and how its blocks are compiled."""

import torch
from torch import nn

from svd.lora import add_lora
from svd.model import NEEDS
from svd.unet import Block, UNet
from training.stages import Stage


def temporal_parameters(unet: UNet) -> dict[str, nn.Parameter]:
    """All that a video network has beyond its image network: temporal layers, the embedding of the ids, and that of the
    mask of given frames."""
    layers = dict(unet.temporal_layer_parameters())
    embeddings = ("ids_embedding.", "mask_embedding")
    return layers | {name: value for name, value in unet.named_parameters() if name.startswith(embeddings)}


def freeze_untrained(unet: UNet, stage: Stage) -> None:
    """Freeze what the stage does not train, and what its batches cannot give a gradient to."""
    trainable = stage.model.trainable
    if trainable == "lora":
        add_lora(unet, rank=stage.model.lora_rank)
        return
    unet.requires_grad_(trainable == "all")
    if trainable == "temporal":
        for parameter in temporal_parameters(unet).values():
            parameter.requires_grad_(True)
    elif trainable == "noise_embedding":
        unet.noise_embedding.requires_grad_(True)
    if NEEDS[stage.task] == "image_encoder" and stage.task != "interpolation":
        for _, parameter in unet.idle_parameters(context_tokens=1):
            parameter.requires_grad_(False)


def compile_blocks(unet: UNet) -> None:
    """torch.compile, block by block. To the compiler all blocks are one piece of code that comes with many sizes: it
    would soon compile for sizes that are not known, and beyond its limit not at all."""
    torch._dynamo.config.recompile_limit = max(128, torch._dynamo.config.recompile_limit)
    for block in (module for module in unet.modules() if isinstance(module, Block)):
        block.compile(dynamic=False)
