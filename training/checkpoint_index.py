"""The index of a checkpoint, `.metadata`: a pickle that torch.distributed.checkpoint writes, read without running code.

DCP unpickles it with everything that pickle can do, and unpickles what the index calls bytes likewise. Here only the
classes that DCP writes are built, every entry has to be a tensor, and its data has to lie in the checkpoint's folder.
"""

import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

INDEX = ".metadata"
_MAX_BYTES = 256 << 20
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
_ALLOWED = {
    (metadata.__name__, name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {(filesystem.__name__, "_StorageInfo"), ("torch", "Size"), ("torch.serialization", "_get_layout")}


class IndexReader(dcp.FileSystemReader):
    """DCP's reader of a folder, with an index that is checked."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Raises ValueError where the index is damaged or not one that a trainer of ours writes."""
        index = read_index(Path(self.path))
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint, all of whose entries are tensors. Raises ValueError and OSError."""
    path = folder / INDEX
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, expected at most {_MAX_BYTES:,}")
    try:
        with path.open("rb") as file:
            index = _Unpickler(file).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise ValueError(f"{path} is damaged or no index of a checkpoint: {error or type(error).__name__}") from error
    reason = _complaint(index)
    if reason:
        raise ValueError(f"{path} is not a clipmill checkpoint index: {reason}")
    checked: Metadata = index
    return checked


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module.partition(".")[0] == "pathlib" and name == "PosixPath":  # where it was written; nobody reads it
            return pathlib.PurePosixPath
        raise pickle.UnpicklingError(f"it names {module}.{name}, which DCP does not write")


def _complaint(index: Any) -> str | None:
    """Of what an unpickled object is not, though its class says so: its attributes were in the file as well."""
    if type(index) is not Metadata:
        return f"it holds a {type(index).__name__}"
    entries, storage = index.state_dict_metadata, index.storage_data
    if not isinstance(entries, dict) or not isinstance(storage, dict):
        return "it lacks entries or their places"
    for name, entry in entries.items():
        if not isinstance(name, str) or type(entry) is not TensorStorageMetadata or type(entry.size) is not torch.Size:
            return f"its entry {name!r} is not a tensor"
    for place, info in storage.items():
        if type(place) is not MetadataIndex or type(info) is not filesystem._StorageInfo:
            return "it has a place of another kind"
        if not isinstance(info.relative_path, str) or not _DATA_FILE.fullmatch(info.relative_path):
            return f"{place.fqn!r} lies in {info.relative_path!r}, which is not a checkpoint file"
    return None
