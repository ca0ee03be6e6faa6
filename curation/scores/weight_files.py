"""Read files of named tensors without executing code: safetensors and torch files. All content is validated."""

import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipmill.errors import UserError

_MAX_PICKLE_BYTES = 8 << 20
"""What names and shapes of tensors take; those of ViT-bigG-14 are 0.2 MB. Unpickled, a byte can become 64."""
_MAX_HEADER_BYTES = 32 << 20
_SCANNED_BYTES = 1 << 20


def read_tensors(path: Path) -> dict[str, Any]:
    """Read the tensors of a safetensors file, or of a torch file without code.

    Raises UserError: code in it, damaged, members that expand beyond the file, or tensors larger than their data.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            _check_header(path)
            return dict(load_file(path))
        _check_members(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except pickle.UnpicklingError as error:
        if not _names_functions(path, error):
            raise _unreadable(path, error) from error
        raise UserError(
            f"{path} is refused: it is a pickle that runs code when loaded. Save only its tensors, as "
            "safetensors, on a machine where you trust it."
        ) from error
    except UserError:
        raise
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # torch's unpickler passes on whatever a call with odd arguments raises
        raise _unreadable(path, error) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(
        isinstance(t, torch.Tensor) and isinstance(k, str) for k, t in content.items()
    ):
        raise UserError(f"{path} contains no named tensors")
    for name, tensor in content.items():
        if not _is_plain(tensor):
            raise UserError(f"{path} is not a readable weight file: tensor {name} is larger than its data")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor in a file, of safetensors without reading the tensors. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def check_shapes(network: Mapping[str, Any], path: Path, name: str) -> None:
    """Compare what a network is made of, on the meta device, with the file that is to fill it.

    Raises UserError where a tensor of the same name has another shape, or the network has more numbers than the file
    has bytes: then most of it would stay random. Nothing of the network's size is allocated for that.
    """
    file_shapes = shapes(path)
    for key, tensor in network.items():
        expected = tuple(tensor.shape)
        if key in file_shapes and file_shapes[key] != expected and not key.startswith("logit_"):
            raise UserError(
                f"{path} does not match the architecture of {name}: its tensor {key} has shape "
                f"{file_shapes[key]}, expected {expected}"
            )
    wanted, there = sum(tensor.numel() for tensor in network.values()), path.stat().st_size
    if wanted > there:
        raise UserError(
            f"{path} does not match the architecture of {name}: that has {wanted:,} weights, the file {there:,} bytes"
        )


def short(error: BaseException) -> str:
    """The first lines of a library's error message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _check_header(path: Path) -> None:
    """A safetensors file says first how long its header is; the reader takes up to 100 MB of JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")


def _check_members(path: Path) -> None:
    """torch stores members as they are, so none is larger than the file; what is pickled is small."""
    size = path.stat().st_size
    if not _is_archive(path):
        if size > _MAX_PICKLE_BYTES:
            raise ValueError(
                f"it is neither safetensors nor a zip archive of torch, and has {size:,} bytes (at most "
                f"{_MAX_PICKLE_BYTES:,} are read of another file); save it as safetensors"
            )
        return
    with zipfile.ZipFile(path) as archive:
        # A TorchScript archive also has compressed source code, which nobody reads here.
        members = [member for member in archive.infolist() if "/code/" not in member.filename]
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its member {member.filename!r} is compressed, which torch's files never are")
            if member.filename.endswith(".pkl") and member.file_size > _MAX_PICKLE_BYTES:
                raise ValueError(
                    f"its index {member.filename!r} has {member.file_size:,} bytes, expected at most "
                    f"{_MAX_PICKLE_BYTES:,}"
                )
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members are larger together than the file")


def _is_archive(path: Path) -> bool:
    """Whether torch, too, takes it for a zip archive, by its first bytes: a directory at its end makes none of it."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(path)


def _names_functions(path: Path, error: Exception) -> bool:
    """Whether it names functions to be called; other content is just not readable, such as half a download."""
    if "Unsupported global" in str(error):
        return True
    with suppress(ValueError, IndexError, OSError, zipfile.BadZipFile):
        if _is_archive(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".pkl") and "/code/" not in name][:1]
                pickles = [archive.read(name) for name in names]
        else:
            with path.open("rb") as file:
                pickles = [file.read(_SCANNED_BYTES)]
        calls = ("GLOBAL", "STACK_GLOBAL", "INST")
        return any(code.name in calls for content in pickles for code, _, _ in pickletools.genops(content))
    return False


def _is_plain(tensor: Any) -> bool:
    """Dense, and no larger than its storage: a stride of 0 makes a terabyte of one number."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return bool(tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


def _unreadable(path: Path, error: BaseException) -> UserError:
    hint = " (a TorchScript archive has to be saved as safetensors first)" if "TorchScript" in str(error) else ""
    return UserError(f"{path} is not a readable weight file: {short(error)}{hint}")
