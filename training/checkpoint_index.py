"""Read a checkpoint's index, `.metadata`, without executing code: it is a pickle by torch.distributed.checkpoint.

DCP unpickles it, and the byte entries it names, without restrictions. This reader only constructs the classes DCP
writes, requires every entry to be a tensor, and its data to be in the checkpoint's folder.
"""

import pathlib
import pickle
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.futures import Future

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
    """DCP's file system reader with a validated index."""

    def __init__(
        self, folder: Path, *, data: Path | None = None, fetch: Callable[[str], None] = lambda file: None
    ) -> None:
        """`data` is the folder of the data files, if it is not that of the index; `fetch` is called with the name of
        each file before it is read."""
        super().__init__(data or folder)
        self._folder, self._fetch = folder, fetch

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Raises ValueError for an index that is damaged or was not written by our trainer."""
        index = read_index(self._folder)
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        """As DCP's; raises what `fetch` does."""
        for file in sorted({self.storage_data[item.storage_index].relative_path for item in plan.items}):
            self._fetch(file)
        return super().read_data(plan, planner)


def read_index(folder: Path) -> Metadata:
    """Read the index of a checkpoint, whose entries must all be tensors. Raises ValueError and OSError."""
    path = folder / INDEX
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, expected at most {_MAX_BYTES:,}")
    try:
        with path.open("rb") as file:
            index = _Unpickler(file).load()
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(f"{path} is damaged or not a checkpoint index: {error or type(error).__name__}") from error
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
        if module.partition(".")[0] == "pathlib" and name == "PosixPath":  # path at the time of writing; unused
            return pathlib.PurePosixPath
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise pickle.UnpicklingError(f"unexpected class {module}.{name}")


def _enum_member(kind: Any, name: str) -> Any:
    """In place of `getattr`, as which early releases of Python 3.11 pickle the member of an enumeration."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(f"unexpected attribute {name!r} of {kind!r}")


def _complaint(index: Any) -> str | None:
    """An unpickled object lacks what its class promises: its attributes also come from the file."""
    if type(index) is not Metadata:
        return f"expected Metadata, got {type(index).__name__}"
    entries, storage = index.state_dict_metadata, index.storage_data
    if not isinstance(entries, dict) or not isinstance(storage, dict):
        return "entries or their locations are missing"
    for name, entry in entries.items():
        if not isinstance(name, str) or type(entry) is not TensorStorageMetadata or type(entry.size) is not torch.Size:
            return f"entry {name!r} is not a tensor"
    for place, info in storage.items():
        if type(place) is not MetadataIndex or type(info) is not filesystem._StorageInfo:
            return "unexpected type of storage location"
        if not isinstance(info.relative_path, str) or not _DATA_FILE.fullmatch(info.relative_path):
            return f"{place.fqn!r} lies in {info.relative_path!r}, which is not a checkpoint file"
    return None
