"""Peak memory of the released autoencoder at 576 x 1024 by chunk and tile size, computed without running it.

Fake tensors have sizes and lifetimes but no data, so this takes seconds on any machine. Counts tensors, including the
output frames, but neither the weights nor the workspace of device kernels.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import report
from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.tiling import Tiling

FRAMES, HEIGHT, WIDTH = 14, 576, 1024
TILING_PX = Tiling(size=512, overlap=128)
TILING_LATENT = Tiling(size=64, overlap=16)
CASES = ((14, False), (7, False), (2, False), (1, False), (14, True), (2, True))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that operators create; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_gib(action: Callable[[], Any]) -> float:
    """Peak GiB of live tensors during `action`."""
    with LiveBytes() as live:
        action()
    return live.peak / 2**30


def main() -> None:
    rows, figures = [], {}
    with FakeTensorMode(), torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            torch.set_default_dtype(dtype)
            model = Autoencoder(AutoencoderConfig.preset("svd"))
            video = torch.empty(1, FRAMES, 3, HEIGHT, WIDTH, dtype=dtype)
            latents = torch.empty(1, FRAMES, 4, HEIGHT // 8, WIDTH // 8, dtype=dtype)
            for chunk, tiles in CASES:
                tiling_px, tiling = (TILING_PX, TILING_LATENT) if tiles else (None, None)
                encode = peak_gib(lambda: model.encode(video, chunk_frames=chunk, tiling=tiling_px))  # noqa: B023
                decode = peak_gib(lambda: model.decode(latents, chunk_frames=chunk, tiling=tiling))  # noqa: B023
                name = str(dtype).removeprefix("torch.")
                rows.append((name, chunk, TILING_PX.size if tiles else "-", f"{encode:.2f}", f"{decode:.2f}"))
                figures[f"{name}_{chunk}{'_tiled' if tiles else ''}"] = [round(encode, 2), round(decode, 2)]
    title = f"Peak GiB of tensors, {FRAMES} frames of {HEIGHT} x {WIDTH}"
    report(title, ("dtype", "frames per chunk", "tile, px", "encode", "decode"), rows, figures)


if __name__ == "__main__":
    main()
