"""Parity with the released model: parameter counts, names, and largest differences from diffusers with equal weights.

    python -m benchmarks.parity [--full]

Weights are random, including norms and mixing factors; float32 on the CPU; the eps of diffusers' residual blocks is set
to the release's. --full adds the network with 1.5 billion parameters (12 GB of memory, some minutes).
"""

import argparse
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel

from benchmarks.common import report
from benchmarks.parity_latents import sampler_difference, vae_decode_difference, vae_encode_difference, vae_parameters
from svd.config import UNetConfig
from svd.keymap_unet import table
from svd.unet import UNet
from tests.svd.networks import DEEP, diffusers_twin, inputs, randomise

SHAPES: tuple[tuple[int, int, tuple[int, int], int], ...] = (
    (2, 4, (16, 24), 1), (1, 3, (11, 13), 1), (2, 2, (8, 24), 77), (1, 1, (9, 8), 2), (1, 14, (5, 7), 1),
)  # fmt: skip
"""Samples, frames, height and width, context tokens."""


def unet_counts() -> tuple[dict[str, int], int]:
    """Parameters of `svd` and of its temporal layers, and how many names and shapes map to diffusers' and back."""
    with torch.device("meta"):
        unet, theirs = UNet(UNetConfig.preset("svd")), UNetSpatioTemporalConditionModel()
    names = table(unet.config, "diffusers")
    back = {name: ours for ours, name in names.items()}
    ours, other = unet.state_dict(), theirs.state_dict()
    same = [name for name in ours if other[names[name]].shape == ours[name].shape and back[names[name]] == name]
    counts = {
        "svd": sum(parameter.numel() for parameter in unet.parameters()),
        "svd_temporal": sum(parameter.numel() for _, parameter in unet.temporal_layer_parameters()),
    }
    return counts, len(same) if len(back) == len(other) else 0


def unet_difference(unet: UNet, shape: tuple[int, int, tuple[int, int], int], *, image: bool = False) -> float:
    """Largest difference from diffusers; with `image`, sample 0 is an image and is compared with the image network."""
    samples, frames, size, tokens = shape
    x_BTCHW, c_noise_B, kwargs = inputs(unet, samples, frames, size, tokens)
    twin = diffusers_twin(unet)
    only = torch.arange(samples) < int(image)
    with torch.no_grad():
        ours = unet(x_BTCHW, c_noise_B, **kwargs, image_only_B=only)
        theirs = twin(x_BTCHW, c_noise_B, kwargs["context_BNC"], kwargs["ids_BK"]).sample
        if image:
            for name, parameter in twin.named_parameters():
                if name.endswith("mix_factor"):
                    parameter.fill_(100.0)
            theirs[0] = twin(x_BTCHW, c_noise_B, kwargs["context_BNC"], kwargs["ids_BK"]).sample[0]
    return float((ours - theirs).abs().max())


def random_network(preset: str, **changes: Any) -> UNet:
    with torch.device("meta"):
        unet = UNet(UNetConfig.preset(preset, **changes))
    unet = unet.to_empty(device="cpu").eval()
    randomise(unet)
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also compare the 1.5-billion-parameter network")
    full = parser.parse_args().full
    counts, same = unet_counts()
    counts["vae"] = vae_parameters()
    rows: list[tuple[str, Any]] = [(f"parameters, {name}", value) for name, value in counts.items()]
    rows.append(("names and shapes that are diffusers' and back", f"{same} of 1428"))
    differences = {}
    for shape in SHAPES:
        unet = random_network("tiny", **DEEP)
        label = "UNet, {} x {} frames, {}, {} tokens".format(*shape)
        differences[label] = unet_difference(unet, shape)
        if shape[0] > 1:
            differences[f"{label}, an image among them"] = unet_difference(unet, shape, image=True)
    if full:
        differences["UNet of full size, 1 x 2 frames, 8 x 8"] = unet_difference(
            random_network("svd"), (1, 2, (8, 8), 1)
        )
    worst = {
        "unet": max(differences.values()),
        "vae_encode": vae_encode_difference(),
        "vae_decode": vae_decode_difference(),
        "sampler": sampler_difference(),
    }
    differences |= {name: value for name, value in worst.items() if name != "unet"}
    rows += [(label.replace("_", " "), f"{value:.1e}") for label, value in differences.items()]
    figures = {"params": counts, "names": same, "max_abs_diff": worst}
    report("Parity with the released architecture", ("what", "value"), rows, figures)


if __name__ == "__main__":
    main()
