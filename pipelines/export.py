"""`clipmill export`: a model written for others."""

from pathlib import Path

import torch

from clipmill.errors import UserError
from svd.checkpoint import load_model
from svd.export import export as export_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(checkpoint: Path, out: Path, *, format: str, dtype: str = "float32") -> Path:
    """Write the model at `checkpoint` into the new folder `out`, `diffusers` or `original`; see `svd.export`.

    Returns what to load: the folder, or the file in it. Raises UserError.
    """
    kind = dtype_of(dtype)
    try:
        return export_model(load_model(checkpoint, dtype=kind), out, format=format, dtype=kind)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def dtype_of(name: str) -> torch.dtype:
    """Raises UserError for one that weights are not stored in."""
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]
