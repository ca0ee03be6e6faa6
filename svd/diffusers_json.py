"""Convert between our configurations and the JSON files of a diffusers folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
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
"""Number of GroupNorm groups of diffusers' UNet, which is not configurable."""

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
    configs: dict[str, _ConfigFile] = {}
    for part in ("unet", "vae", "image_encoder", "text_encoder"):
        path = folder / part / "config.json"
        if path.is_file():
            configs[part] = _ConfigFile(str(path), read_object(path))
        elif part in ("unet", "vae"):
            raise FileNotFoundError(f"{folder} is not a model folder: expected {part}/config.json or clipmill.json")
    return ModelConfig.from_values(
        {
            "unet": _read_unet(configs["unet"]),
            "autoencoder": _read_autoencoder(configs["vae"]),
            "image_encoder": _read_image_encoder(configs["image_encoder"]) if "image_encoder" in configs else None,
            "text_encoder": _read_text_encoder(configs["text_encoder"]) if "text_encoder" in configs else None,
        },
        origin=str(folder),
    )


@dataclass(frozen=True)
class _ConfigFile:
    """A config.json of another tool. Raises UserError that names the file, the key, and what it expects."""

    path: str
    values: Mapping[str, Any]

    def expect(self, key: str, expected: str) -> None:
        """Check a key's value."""
        if self.values.get(key) != expected:
            raise UserError(f"{self.path}: expected {key} {expected!r}, got {self.values.get(key)!r:.100}")

    def size(self, key: str) -> int:
        return self._checked(key, _is_size, "a positive integer")

    def sizes(self, key: str, levels: int | None = None) -> list[int]:
        return self._per_level(key, _is_size, "positive integers", levels)

    def names(self, key: str, levels: int) -> list[str]:
        return self._per_level(key, lambda value: isinstance(value, str), "names", levels)

    def number(self, key: str) -> float:
        return self._checked(key, lambda value: type(value) in (int, float) and 0 < value < inf, "a positive number")

    def _per_level(self, key: str, is_valid: Callable[[Any], bool], expected: str, levels: int | None) -> Any:
        def all_valid(value: Any) -> bool:
            return isinstance(value, list) and len(value) == (levels or len(value) or 1) and all(map(is_valid, value))

        return self._checked(key, all_valid, f"a list of {levels or 'one or more'} {expected}")

    def _checked(self, key: str, is_valid: Callable[[Any], bool], expected: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.path} is missing the key {key!r}")
        value = self.values[key]
        if not is_valid(value):
            raise UserError(f"{self.path}: expected {key} to be {expected}, got {value!r:.100}")
        return value


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _read_unet(file: _ConfigFile) -> UNetConfig:
    file.expect("_class_name", "UNetSpatioTemporalConditionModel")
    widths, id_width = file.sizes("block_out_channels"), file.size("addition_time_embed_dim")
    heads = file.sizes("num_attention_heads", levels=len(widths))
    head_widths = {width / head for width, head in zip(widths, heads, strict=True)}
    if len(head_widths) > 1 or widths[0] % heads[0]:
        raise UserError(
            f"{file.path}: expected block_out_channels and num_attention_heads with one width per head for all levels, "
            f"got {widths!r:.100} and {heads!r:.100}"
        )
    ids = file.size("projection_class_embeddings_input_dim") / id_width
    if ids not in range(1, len(_IDS) + 1):
        raise UserError(
            f"{file.path}: expected projection_class_embeddings_input_dim to be 1 to {len(_IDS)} times "
            f"addition_time_embed_dim, got {file.values['projection_class_embeddings_input_dim']} and {id_width}"
        )
    return UNetConfig.from_values(
        {
            "in_channels": file.size("in_channels"),
            "out_channels": file.size("out_channels"),
            "widths": tuple(widths),
            "blocks_per_level": file.size("layers_per_block"),
            "attention": tuple(
                name.startswith("CrossAttn") for name in file.names("down_block_types", levels=len(widths))
            ),
            "head_width": widths[0] // heads[0],
            "context_width": file.size("cross_attention_dim"),
            "ids": _IDS[: int(ids)],
            "id_width": id_width,
            "frames": file.size("num_frames"),
        },
        origin=file.path,
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


def _read_autoencoder(file: _ConfigFile) -> AutoencoderConfig:
    file.expect("_class_name", "AutoencoderKLTemporalDecoder")
    return AutoencoderConfig.from_values(
        {
            "widths": tuple(file.sizes("block_out_channels")),
            "blocks_per_level": file.size("layers_per_block"),
            "frame_channels": file.size("in_channels"),
            "latent_channels": file.size("latent_channels"),
            "scale_factor": file.number("scaling_factor"),
        },
        origin=file.path,
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


def _read_image_encoder(file: _ConfigFile) -> ImageEncoderConfig:
    file.expect("hidden_act", "gelu")  # as in OpenCLIP
    return ImageEncoderConfig.from_values(
        {
            "size_px": file.size("image_size"),
            "patch_px": file.size("patch_size"),
            "width": file.size("hidden_size"),
            "layers": file.size("num_hidden_layers"),
            "heads": file.size("num_attention_heads"),
            "mlp_width": file.size("intermediate_size"),
            "embedding_width": file.size("projection_dim"),
        },
        origin=file.path,
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


def _read_text_encoder(file: _ConfigFile) -> TextEncoderConfig:
    file.expect("hidden_act", "gelu")  # as in OpenCLIP
    return TextEncoderConfig.from_values(
        {
            "tokens": file.size("max_position_embeddings"),
            "vocabulary": file.size("vocab_size"),
            "width": file.size("hidden_size"),
            "layers": file.size("num_hidden_layers"),
            "heads": file.size("num_attention_heads"),
            "mlp_width": file.size("intermediate_size"),
        },
        origin=file.path,
    )
