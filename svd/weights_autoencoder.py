"""Load and save the autoencoder's weights in any layout of `svd.keymap_autoencoder`."""

from contextlib import ExitStack
from pathlib import Path

import torch

from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.keymap_autoencoder import PREFIX, Layout, from_layout, table, to_layout
from svd.tensor_files import open_tensors, write_tensors
from svd.weights import check_weights


def load_autoencoder(
    path: str | Path,
    config: AutoencoderConfig,
    *,
    layout: Layout,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """Load the autoencoder of `config` from a file, or from a folder with one file. `layout` is `diffusers` or
    `original`; `condition` has no decoder. Tensors of other networks in an original file are ignored.

    Raises FileNotFoundError; WeightsError if the file is damaged or its names or shapes do not match `config`, with
    counts and the first few names.
    """
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    names = table(config, layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_layout(autoencoder.state_dict(), config, layout).items()}
    with ExitStack() as files:
        prefix = PREFIX[layout]
        stored = {name: tensor for name, tensor in open_tensors(path, files).items() if name.startswith(prefix)}
        check_weights(path, stored, shapes)
        tensors = {name: stored[name].read().to(device, dtype) for name in names.values()}
    autoencoder.load_state_dict(from_layout(tensors, config, layout), assign=True)
    return autoencoder


def save_autoencoder(
    autoencoder: Autoencoder, path: str | Path, *, layout: Layout, dtype: torch.dtype | None = None
) -> None:
    """Save an autoencoder's weights in a layout, converted to `dtype` if given. `condition` has no decoder."""
    write_tensors(path, to_layout(autoencoder.state_dict(), autoencoder.config, layout), dtype=dtype)
