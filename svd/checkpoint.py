"""Load and save whole models, in diffusers' folder layout or the original single-file layout.

Folders follow diffusers' layout, so diffusers can load every network it has a class for:

    DIR/clipmill.json        the configuration of all networks; written last
    DIR/unet, vae, image_encoder or text_encoder    weights and, where diffusers has such a network, config.json
    DIR/scheduler, feature_extractor, model_index.json    for StableVideoDiffusionPipeline only

Single files follow the release: all networks under separate prefixes, with our configuration in the metadata. Folders
and files written by other tools load as well.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.atomic import write_text
from svd import diffusers_json, keymap_autoencoder, keymap_clip, keymap_unet
from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.clip import ImageEncoder, ImageEncoderConfig, TextEncoder
from svd.config import UNetConfig
from svd.json_files import parse_object, read_object
from svd.model import NEEDS, Model, ModelConfig
from svd.tensor_files import INDEX, Stored, WeightsError, open_tensors, write_shards, write_tensors
from svd.weights import check_weights, load_unet, module_tensors
from svd.weights_autoencoder import load_autoencoder

CONFIG = "clipmill.json"
METADATA = "clipmill"
"""Metadata key of the configuration in a single file."""
SHARD_BYTES = 5 * 10**9

FOLDERS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "autoencoder": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
"""Path of each network's weights inside a folder."""

_OLD_TEXT_PREFIX = "cond_stage_model.model."
"""Prefix of the text encoder in Stable Diffusion 2.1's own file."""


def load_model(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model from a folder or an original-layout file, in evaluation mode with frozen encoders.

    Raises FileNotFoundError; WeightsError for damaged or mismatched weights; ValueError for an invalid configuration.
    """
    path = Path(path)
    config = read_config(path)
    layout: keymap_unet.Layout = "diffusers" if path.is_dir() else "original"
    where = {part: _weights(path, part) for part in FOLDERS}
    unet = load_unet(where["unet"], config.unet, layout=layout, device=device, dtype=dtype).eval()
    autoencoder = _load_autoencoder(where["autoencoder"], config.autoencoder, layout, device, dtype)
    model = Model(config=config, unet=unet, autoencoder=autoencoder)
    for part, encoder in (("image_encoder", config.image_encoder), ("text_encoder", config.text_encoder)):
        if encoder is not None:
            setattr(model, part, load_encoder(where[part], encoder, device=device, dtype=dtype))
    return model


def read_config(path: str | Path) -> ModelConfig:
    """Read the configuration of a folder or file without loading weights. Raises the same errors as `load_model`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model folder or a file in the original layout")
    if (path / CONFIG).is_file():
        return _parse(read_object(path / CONFIG), str(path / CONFIG))
    if path.is_dir():
        return diffusers_json.read(path)
    with ExitStack() as files:
        stored = open_tensors(path, files)
        metadata = next(iter(stored.values())).file.metadata() if stored else None
        if metadata and METADATA in metadata:
            origin = f"the metadata of {path}"
            return _parse(parse_object(metadata[METADATA], origin), origin)
        return _released(path, stored)


def save_model(model: Model, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save a model as a folder, converting weights to `dtype` if given. Encoders that are not our modules are skipped.

    Each file is replaced atomically; the configuration is written last.
    """
    folder, config = Path(folder), model.config
    for part, tensors in diffusers_tensors(model).items():
        write_shards(folder / FOLDERS[part], tensors, shard_bytes=SHARD_BYTES, dtype=dtype)
    for name, content in (diffusers_json.files(config) | {CONFIG: config.model_dump(mode="json")}).items():
        write_text(folder / name, json.dumps(content, indent=2) + "\n")


def save_original(model: Model, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save a model as one original-layout file, converting weights to `dtype` if given.

    As in the release, the autoencoder's encoder is stored twice: as first stage and for the conditioning image.
    """
    config = model.config
    tensors = module_tensors(model.unet, keymap_unet.table(config.unet, "original"))
    state = model.autoencoder.state_dict()
    tensors |= keymap_autoencoder.to_layout(state, config.autoencoder, "original")
    if NEEDS[config.task] == "image_encoder":
        tensors |= keymap_autoencoder.to_layout(state, config.autoencoder, "condition")
    for encoder in (model.image_encoder, model.text_encoder):
        if isinstance(encoder, ImageEncoder | TextEncoder):
            tensors |= keymap_clip.to_layout(encoder.state_dict(), encoder.config, "original")
    write_tensors(path, tensors, dtype=dtype, metadata={METADATA: json.dumps(config.model_dump(mode="json"))})


def diffusers_tensors(model: Model) -> dict[str, dict[str, Tensor]]:
    """Tensors of all networks under diffusers' and transformers' names, as views."""
    config = model.config
    tensors = {
        "unet": module_tensors(model.unet, keymap_unet.table(config.unet, "diffusers")),
        "autoencoder": keymap_autoencoder.to_layout(model.autoencoder.state_dict(), config.autoencoder, "diffusers"),
    }
    for part, encoder in (("image_encoder", model.image_encoder), ("text_encoder", model.text_encoder)):
        if isinstance(encoder, ImageEncoder | TextEncoder):
            tensors[part] = keymap_clip.to_layout(encoder.state_dict(), encoder.config, "transformers")
    return tensors


def load_encoder(
    path: str | Path,
    config: keymap_clip.Config,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load the image or text encoder of `config` from a file with transformers' or original names, and freeze it.
    Tensors of other networks in an original file and unused parts of a text encoder are ignored.

    Raises FileNotFoundError; WeightsError for a damaged or mismatched file.
    """
    with torch.device("meta"):
        encoder = ImageEncoder(config) if isinstance(config, ImageEncoderConfig) else TextEncoder(config)
    image = isinstance(config, ImageEncoderConfig)
    scope = keymap_clip.IMAGE_PREFIX if image else keymap_clip.TEXT_PREFIX
    with ExitStack() as files:
        stored = open_tensors(path, files)
        if not image:
            stored = {_text_name(name): tensor for name, tensor in stored.items()}
        layout: keymap_clip.Layout = "original" if any(name.startswith(scope) for name in stored) else "transformers"
        if layout == "original":
            stored = {name: tensor for name, tensor in stored.items() if name.startswith(scope)}
        used = {name: tensor for name, tensor in stored.items() if not _unused(name, config)}
        expected = keymap_clip.to_layout(encoder.state_dict(), config, layout)
        check_weights(path, used, {name: tuple(tensor.shape) for name, tensor in expected.items()})
        tensors = {name: used[name].read().to(device, dtype) for name in expected}
    encoder.load_state_dict(keymap_clip.from_layout(tensors, config, layout), assign=True)
    return encoder.requires_grad_(False).eval()


def _text_name(name: str) -> str:
    """Normalize the prefix to the key map's: Stable Diffusion 2.1's file uses another one, recent transformers none."""
    if name.startswith(_OLD_TEXT_PREFIX):
        return keymap_clip.TEXT_PREFIX + name.removeprefix(_OLD_TEXT_PREFIX)
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name


def _unused(name: str, config: keymap_clip.Config) -> bool:
    """Tensors in files that the encoder does not use: position ids and, for text, the last layer and the projection."""
    return name.endswith(("position_ids", "logit_scale", "text_projection", "text_projection.weight")) or (
        not isinstance(config, ImageEncoderConfig) and f".{config.layers}." in name
    )


def _load_autoencoder(
    path: Path,
    config: AutoencoderConfig,
    layout: keymap_unet.Layout,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Autoencoder:
    """Prefer the conditioner's copy of the encoder in an original file: sampling uses that one."""
    if layout == "diffusers":
        return load_autoencoder(path, config, layout="diffusers", device=device, dtype=dtype).eval()
    autoencoder = load_autoencoder(path, config, layout="original", device=device, dtype=dtype).eval()
    names = keymap_autoencoder.table(config, "condition")
    with ExitStack() as files:
        stored = open_tensors(path, files)
        if any(name in stored for name in names.values()):
            shapes = {
                name: tuple(tensor.shape)
                for name, tensor in keymap_autoencoder.to_layout(autoencoder.state_dict(), config, "condition").items()
            }
            check_weights(path, {name: tensor for name, tensor in stored.items() if name in shapes}, shapes)
            tensors = {name: stored[name].read().to(device, dtype) for name in names.values()}
            weights = keymap_autoencoder.from_layout(tensors, config, "condition")
            autoencoder.load_state_dict(weights, strict=False, assign=True)
    return autoencoder


def _weights(path: Path, part: str) -> Path:
    """Find the weights file of a network. In a folder with several variants, pick the one without a variant suffix."""
    if not path.is_dir():
        return path
    file = path / FOLDERS[part]
    index = file.with_name(f"{file.stem}{INDEX}")
    return next((path for path in (file, index) if path.is_file()), file.parent)


def _parse(values: dict[str, Any], origin: str) -> ModelConfig:
    return ModelConfig.from_values(values, origin=f"{origin} is not a model configuration")


def _released(path: Path, stored: dict[str, Stored]) -> ModelConfig:
    """Infer the released model from the UNet's inputs in an original-layout file."""
    inputs = stored.get(f"{keymap_unet.ORIGINAL_PREFIX}input_blocks.0.0.weight")
    if inputs is None:
        raise WeightsError(
            f"{path} has {len(stored)} tensors but neither a UNet in the original layout nor a configuration in its "
            "metadata; pass a model folder or file"
        )
    ids = stored.get(f"{keymap_unet.ORIGINAL_PREFIX}label_emb.0.0.weight")
    presets = {name: UNetConfig.preset(name) for name in ("svd", "multiview", "interpolation", "t2v", "sd21")}
    for unet in presets.values():
        widths = unet.id_width * len(unet.ids), unet.in_channels
        if widths == (ids.shape[1] if ids else 0, inputs.shape[1]):
            return ModelConfig.preset(unet)
    raise WeightsError(
        f"the UNet in {path} has {inputs.shape[1]} input channels and {ids.shape[1] if ids else 0} id "
        f"channels, which matches none of {', '.join(presets)}"
    )
