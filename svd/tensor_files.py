"""Read and atomically write safetensors files and shards, one tensor at a time."""

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipmill.atomic import atomic_path
from clipmill.config import unknown_name
from clipmill.errors import UserError
from svd.json_files import read_object

CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""Weight dtypes under their safetensors names."""

INDEX = ".safetensors.index.json"
_MAX_HEADER_BYTES = 32 << 20


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes for saving models, by name."""


class WeightsError(UserError):
    """The file is damaged or does not match the network."""


def dtype_of(name: str) -> torch.dtype:
    """Look up a dtype for saving models. Raises UserError for an unsupported one."""
    if name not in DTYPES:
        raise UserError(unknown_name("dtype", name, list(DTYPES)))
    return DTYPES[name]


class Stored(NamedTuple):
    """A tensor in an open file, loaded lazily."""

    name: str
    file: Any
    shape: tuple[int, ...]
    code: str

    def read(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor


def open_tensors(path: str | Path, files: ExitStack) -> dict[str, Stored]:
    """List every tensor of a safetensors file, of an index (*.safetensors.index.json) and its shards, or of a folder
    with either. The files stay open as long as `files`.

    Raises FileNotFoundError for missing files, WeightsError for damaged or ambiguous ones.
    """
    stored: dict[str, Stored] = {}
    for shard in _shards(Path(path)):
        try:
            _check_header(shard)
            file = files.enter_context(safe_open(shard, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{shard} is not a safetensors file or is truncated ({error}); download it again"
            ) from error
        for name in list(file.keys()):
            if name in stored:
                raise WeightsError(
                    f"duplicate tensor {name} in two shards of {path}; remove the shard of the other network"
                )
            part = file.get_slice(name)
            stored[name] = Stored(name, file, tuple(part.get_shape()), part.get_dtype())
    return stored


def _check_header(path: Path) -> None:
    """Raise OSError for an oversized header: the library accepts up to 100 MB of JSON, which takes ten times that in
    memory.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise OSError(f"its header claims {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        candidates = sorted(path.glob(f"*{INDEX}")) or sorted(path.glob("*.safetensors"))
        if not candidates:
            raise FileNotFoundError(f"no *.safetensors and no *{INDEX} in {path}")
        if len(candidates) > 1:
            first = ", ".join(candidate.name for candidate in candidates[:4])
            raise WeightsError(
                f"{path} contains {len(candidates)} sets of weights ({first}); pass the path of one file"
            )
        return _shards(candidates[0])
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.name.endswith(INDEX):
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"{path.name}: expected a safetensors file; clipmill does not unpickle weights. Convert the file first"
            )
        return [path]
    try:
        names = sorted(set(read_object(path)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path} is not a shard index: {error!r}") from error
    shards = [path.parent / Path(name).name for name in names]
    lost = [shard.name for shard in shards if not shard.is_file()]
    if lost:
        raise FileNotFoundError(f"{len(lost)} of the {len(shards)} shards of {path} are missing, first: {lost[0]}")
    return shards


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors, converted to `dtype` if given, as one file: 8 bytes of header length, a JSON header, the
    data.

    Unlike the library's writer, this does not need all tensors converted, contiguous and on the CPU at once.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype or tensor.dtype
        code = CODES.get(kind)
        if code is None:
            raise ValueError(f"{name} is {kind}; weights are written as {', '.join(map(str, CODES))}")
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(Path(path), _stream([len(text).to_bytes(8, "little"), text], tensors.values(), dtype))


def write_shards(
    path: str | Path, tensors: Mapping[str, Tensor], *, shard_bytes: int, dtype: torch.dtype | None = None
) -> list[Path]:
    """Write named tensors as files of at most `shard_bytes` (a larger tensor gets its own file) and the index that
    diffusers and transformers expect next to them.

    `path` is the unsharded name, such as unet/diffusion_pytorch_model.safetensors; if one file is enough, it is written
    without an index. Returns the files written.
    """
    base = Path(path)
    shards: list[dict[str, Tensor]] = [{}]
    room, total = shard_bytes, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room, total = room - size, total + size
    if len(shards) == 1:
        write_tensors(base, shards[0], dtype=dtype)
        return [base]
    files = [base.with_name(f"{base.stem}-{i:05}-of-{len(shards):05}{base.suffix}") for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(file, shard, dtype=dtype)
    where = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    index = base.with_name(f"{base.stem}{INDEX}")
    _write(index, [json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2).encode()])
    return [*files, index]


def _stream(head: list[bytes], tensors: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[bytes | memoryview]:
    yield from head
    for tensor in tensors:
        data = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        size = data.numel() * data.itemsize
        yield memoryview((ctypes.c_char * size).from_address(data.data_ptr())) if size else b""


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Replace the file atomically: readers see the old or the new one."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
