"""Stable Video Diffusion's networks in plain PyTorch: weights, noise schedules, sampling and conditioning.
`docs/model.md`.
"""

from svd.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from svd.checkpoint import load_model, save_model
from svd.conditioning import Conditioning, Ids
from svd.config import UNetConfig
from svd.export import export
from svd.inflate import inflate
from svd.lora import add_lora, load_lora, merge_lora, save_lora
from svd.model import Model, ModelConfig, Task
from svd.noise import Discrete, Edm, denoise, denoising_loss
from svd.sampler import karras_sigmas, sample_euler, sample_heun
from svd.tasks import Sampling, image_to_video, interpolate, text_to_video
from svd.unet import UNet
from svd.weights import load_unet, save_unet

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Conditioning",
    "Discrete",
    "Edm",
    "Ids",
    "Model",
    "ModelConfig",
    "Posterior",
    "Sampling",
    "Task",
    "UNet",
    "UNetConfig",
    "add_lora",
    "denoise",
    "denoising_loss",
    "export",
    "image_to_video",
    "inflate",
    "interpolate",
    "karras_sigmas",
    "load_lora",
    "load_model",
    "load_unet",
    "merge_lora",
    "sample_euler",
    "sample_heun",
    "save_lora",
    "save_model",
    "save_unet",
    "text_to_video",
]
