"""Select the weights a stage trains, and compile the network's blocks."""

import torch
from torch import nn

from svd.lora import add_lora
from svd.model import NEEDS
from svd.unet import Block, UNet
from training.stages import Stage


def temporal_parameters(unet: UNet) -> dict[str, nn.Parameter]:
    """Parameters a video network adds to its image network: temporal layers, id embedding, and mask embedding."""
    layers = dict(unet.temporal_layer_parameters())
    embeddings = ("ids_embedding.", "mask_embedding")
    return layers | {name: value for name, value in unet.named_parameters() if name.startswith(embeddings)}


def freeze_untrained(unet: UNet, stage: Stage) -> None:
    """Freeze parameters the stage does not train and those that get no gradient from its batches."""
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
    """torch.compile each block separately. All blocks share their code objects but differ in shape: dynamo would switch
    to dynamic shapes, and stop compiling at its recompile limit.
    """
    torch._dynamo.config.recompile_limit = max(128, torch._dynamo.config.recompile_limit)
    for block in (module for module in unet.modules() if isinstance(module, Block)):
        block.compile(dynamic=False)
