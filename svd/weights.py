"""Load and save a network's weights under any naming scheme given by a key map.

A key map assigns each of our tensor names a name in the file (`svd.keymap_unet.table`, and its counterpart for the
autoencoder). Tensors are never reshaped, and loading never holds two copies of a network in memory: meta tensors are
materialized one by one as the file is read.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from svd import keymap_unet
from svd.config import UNetConfig
from svd.keymap_unet import Layout
from svd.tensor_files import CODES, Stored, WeightsError, open_tensors, write_shards, write_tensors
from svd.unet import UNet

Table = Mapping[str, str]
"""Our tensor name -> its name in a file."""

_SHOWN = 3


def load(
    module: nn.Module,
    path: str | Path,
    table: Table,
    *,
    scope: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Load every tensor of `module` from a safetensors file, or from a folder with one file or with shards and an
    index.

    Meta tensors are created on `device` in `dtype` (None: the module's own); others are filled in place. Names in the
    file that do not start with `scope` belong to other networks and are ignored.

    Raises FileNotFoundError; WeightsError, before anything is changed, if the file is damaged or its names or shapes do
    not match the module's, with counts and the first few names.
    """
    state = module_tensors(module, table)
    with ExitStack() as files:
        stored = open_tensors(path, files)
        expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
        check_weights(path, {name: tensor for name, tensor in stored.items() if name.startswith(scope)}, expected)
        for ours, name in table.items():
            _fill(module, ours, stored[name].read(), device, dtype)


def save(
    module: nn.Module,
    path: str | Path,
    table: Table,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Save every tensor of `module`, converted to `dtype` if given, as one file or as shards of `shard_bytes`.

    Existing files stay intact until they are replaced. Returns the files written.
    """
    tensors = module_tensors(module, table)
    if shard_bytes is not None:
        return write_shards(path, tensors, shard_bytes=shard_bytes, dtype=dtype)
    write_tensors(path, tensors, dtype=dtype, metadata=metadata)
    return [Path(path)]


def module_tensors(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """The module's tensors under the key map's names. Raises ValueError for a key map of another network."""
    state = module.state_dict()
    if set(state) != set(table):
        odd = sorted(set(state) ^ set(table))
        raise ValueError(
            f"the key map does not match the network: {len(odd)} names differ, first {', '.join(odd[:_SHOWN])}"
        )
    return {name: state[ours] for ours, name in table.items()}


def load_unet(
    path: str | Path,
    config: UNetConfig,
    *,
    layout: Layout | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> UNet:
    """Load the UNet of `config` from a file or folder; see `load`. `layout` defaults to the one matching the names."""
    with torch.device("meta"):
        unet = UNet(config)
    layout = layout or _layout(path, config)
    scope = keymap_unet.ORIGINAL_PREFIX if layout == "original" else ""
    load(unet, path, keymap_unet.table(config, layout), scope=scope, device=device, dtype=dtype)
    return unet


def save_unet(
    unet: UNet,
    path: str | Path,
    *,
    layout: Layout,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> list[Path]:
    """Save a UNet's weights in a layout; see `save`."""
    return save(unet, path, keymap_unet.table(unet.config, layout), dtype=dtype, shard_bytes=shard_bytes)


def _layout(path: str | Path, config: UNetConfig) -> Layout:
    """Detect the layout that shares most names with the file."""
    with ExitStack() as files:
        names = set(open_tensors(path, files))
    layouts: tuple[Layout, ...] = get_args(Layout)
    shared = {layout: len(names & set(keymap_unet.table(config, layout).values())) for layout in layouts}
    best = max(layouts, key=lambda layout: shared[layout])
    if not shared[best]:
        raise WeightsError(
            f"{path} has {len(names)} tensors, but none of a UNet in the layouts {', '.join(layouts)}; "
            f"the first are {_list(names)}"
        )
    return best


def check_weights(path: str | Path, stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError, with counts and first names per category, unless a file's tensors are the expected ones."""
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    common = [(name, stored[name].shape, shape) for name, shape in expected.items() if name in stored]
    reshaped = [f"{name} is {got}, expected {shape}" for name, got, shape in common if got != shape]
    codes = [f"{name} is {stored[name].code}" for name, _, _ in common if stored[name].code not in CODES.values()]
    complaints = {
        "missing": missing,
        "unexpected": unexpected,
        "with the wrong shape": reshaped,
        "not floating point": codes,
    }
    if any(complaints.values()):
        parts = (f"{len(names)} {what} (first: {_list(names)})" for what, names in complaints.items() if names)
        raise WeightsError(
            f"{path} does not match this network of {len(expected)} tensors: {'; '.join(parts)}. "
            "Check that the file is complete and matches the configuration and layout"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:_SHOWN])


def _fill(module: nn.Module, name: str, value: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    current: Tensor = getattr(owner, attribute)
    if not current.is_meta:
        with torch.no_grad():
            current.copy_(value)
        return
    filled = torch.empty_like(current, device=device, dtype=dtype or current.dtype, requires_grad=False).copy_(value)
    if isinstance(current, nn.Parameter):
        setattr(owner, attribute, nn.Parameter(filled, requires_grad=current.requires_grad))
    else:
        setattr(owner, attribute, filled)
