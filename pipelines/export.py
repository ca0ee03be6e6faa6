"""`clipmill export`: write a model for other programs."""

from pathlib import Path

from clipmill.errors import UserError
from svd.checkpoint import load_model
from svd.export import export as export_model
from svd.tensor_files import dtype_of


def export(checkpoint: Path, out: Path, *, format: str, dtype: str = "float32") -> Path:
    """Write the model at `checkpoint` into the new folder `out`, `diffusers` or `original`; see `svd.export`.

    Returns what to load: the folder, or the file in it. Raises UserError.
    """
    kind = dtype_of(dtype)
    try:
        return export_model(load_model(checkpoint, dtype=kind), out, format=format, dtype=kind)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
