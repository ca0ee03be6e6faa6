"""Convert between our configurations and the JSON files of a diffusers folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmill.errors import UserError
from svd.autoencoder import AutoencoderConfig
from svd.clip import CLIP_MEAN, CLIP_STD, ImageEncoderConfig, TextEncoderConfig
from svd.config import UNetConfig
from svd.json_files import read_object
from svd.keymap_unet import diffusers_config
from svd.model import ModelConfig

_IDS = ("fps_id", "motion_bucket", "noise_augmentation", "elevation")
"""Ids in the order of the released network; the last one is multi-view only."""

UNET_GROUPS = 32
"""Normalization eps of diffusers' UNet, which is not configurable."""

PIPELINE = {
    "_class_name": "StableVideoDiffusionPipeline",
    "_diffusers_version": "0.24.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
FEATURE_EXTRACTOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}


def files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """All JSON files of a model folder: path -> content. Networks that diffusers cannot build have no file."""
    contents: dict[str, dict[str, Any]] = {"scheduler/scheduler_config.json": SCHEDULER}
    if config.autoencoder.in_diffusers:
        contents["vae/config.json"] = _autoencoder(config.autoencoder)
    if config.unet.temporal and config.unet.ids and not config.unet.learned_mask and config.unet.groups == UNET_GROUPS:
        contents["unet/config.json"] = diffusers_config(config.unet)
    if config.image_encoder is not None:
        contents["image_encoder/config.json"] = _image_encoder(config.image_encoder)
        contents["feature_extractor/preprocessor_config.json"] = FEATURE_EXTRACTOR
    if config.text_encoder is not None:
        contents["text_encoder/config.json"] = _text_encoder(config.text_encoder)
    if config.task == "image-to-video" and {"vae/config.json", "unet/config.json"} <= contents.keys():
        contents["model_index.json"] = PIPELINE
    return contents


def read(folder: Path) -> ModelConfig:
    """Read the configuration of a diffusers folder written by another tool, such as the released ones.

    Raises FileNotFoundError; UserError for an unexpected configuration or incompatible networks.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    for part in ("unet", "vae", "image_encoder", "text_encoder"):
        path = folder / part / "config.json"
        if path.is_file():
            configs[part] = read_object(path)
        elif part in ("unet", "vae"):
            raise FileNotFoundError(f"{folder} is not a model folder: expected {part}/config.json or clipmill.json")
    try:
        unet = _read_unet(configs["unet"])
        return ModelConfig.from_values(
            {
                "unet": unet,
                "autoencoder": _read_autoencoder(configs["vae"]),
                "image_encoder": _read_image_encoder(configs["image_encoder"]) if "image_encoder" in configs else None,
                "text_encoder": _read_text_encoder(configs["text_encoder"]) if "text_encoder" in configs else None,
            },
            origin=str(folder),
        )
    except KeyError as error:
        raise UserError(f"{folder}: a config.json is missing the key {error}") from error
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{folder}: a config.json has a value of an unexpected type: {error}") from error


def _read_unet(values: Mapping[str, Any]) -> UNetConfig:
    if values.get("_class_name") != "UNetSpatioTemporalConditionModel":
        raise UserError(f"expected a UNetSpatioTemporalConditionModel, got {values.get('_class_name')}")
    widths = values["block_out_channels"]
    head_widths = {width // heads for width, heads in zip(widths, values["num_attention_heads"], strict=True)}
    if len(head_widths) > 1:
        raise UserError(f"expected one head width for all levels, got {sorted(head_widths)}")
    ids = values["projection_class_embeddings_input_dim"] // values["addition_time_embed_dim"]
    return UNetConfig.from_values(
        {
            "in_channels": values["in_channels"],
            "out_channels": values["out_channels"],
            "widths": tuple(widths),
            "blocks_per_level": values["layers_per_block"],
            "attention": tuple(kind.startswith("CrossAttn") for kind in values["down_block_types"]),
            "head_width": head_widths.pop(),
            "context_width": values["cross_attention_dim"],
            "ids": _IDS[:ids],
            "id_width": values["addition_time_embed_dim"],
            "frames": values["num_frames"],
        },
        origin="unet/config.json",
    )


def _autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.widths),
        "force_upcast": True,
        "in_channels": config.frame_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "out_channels": config.frame_channels,
        "sample_size": 768,
        "scaling_factor": config.scale_factor,
    }


def _read_autoencoder(values: Mapping[str, Any]) -> AutoencoderConfig:
    if values.get("_class_name") != "AutoencoderKLTemporalDecoder":
        raise UserError(f"expected an AutoencoderKLTemporalDecoder, got {values.get('_class_name')}")
    return AutoencoderConfig.from_values(
        {
            "widths": tuple(values["block_out_channels"]),
            "blocks_per_level": values["layers_per_block"],
            "frame_channels": values["in_channels"],
            "latent_channels": values["latent_channels"],
            "scale_factor": values["scaling_factor"],
        },
        origin="vae/config.json",
    )


def _image_encoder(config: ImageEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "image_size": config.size_px,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch_px,
        "projection_dim": config.embedding_width,
    }


def _read_image_encoder(values: Mapping[str, Any]) -> ImageEncoderConfig:
    _expect_gelu(values)
    return ImageEncoderConfig.from_values(
        {
            "size_px": values["image_size"],
            "patch_px": values["patch_size"],
            "width": values["hidden_size"],
            "layers": values["num_hidden_layers"],
            "heads": values["num_attention_heads"],
            "mlp_width": values["intermediate_size"],
            "embedding_width": values["projection_dim"],
        },
        origin="image_encoder/config.json",
    )


def _text_encoder(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": config.tokens,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocabulary,
    }


def _read_text_encoder(values: Mapping[str, Any]) -> TextEncoderConfig:
    _expect_gelu(values)
    return TextEncoderConfig.from_values(
        {
            "tokens": values["max_position_embeddings"],
            "vocabulary": values["vocab_size"],
            "width": values["hidden_size"],
            "layers": values["num_hidden_layers"],
            "heads": values["num_attention_heads"],
            "mlp_width": values["intermediate_size"],
        },
        origin="text_encoder/config.json",
    )


def _expect_gelu(values: Mapping[str, Any]) -> None:
    if values.get("hidden_act") != "gelu":
        raise UserError(f"expected hidden_act gelu, as in OpenCLIP, got {values.get('hidden_act')}")
