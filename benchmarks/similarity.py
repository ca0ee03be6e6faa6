"""Frames per second of CLIP embeddings and similarity, compared with a plain open_clip loop on the same clips.

    python -m benchmarks.similarity [--models ViT-B-32 ...] [--clips N] [--threads N]

The plain loop follows open_clip's README: one image and one caption at a time. Weights are random, since speed does not
depend on them. Both use the same number of threads, and run in turn.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.common import interleaved, report
from curation.inputs.caption import Caption
from curation.scores.base import ClipView
from curation.scores.clip_embedder import ClipEmbedder, ClipEmbedderConfig

_CAPTION = "a small red boat crosses a wide grey harbour in the rain, seen from a bridge, take {}"
_RUNS = 3


def clips(count: int) -> list[ClipView]:
    """Clips of three 640 x 360 images, each with its own caption."""
    rng = np.random.default_rng(0)
    views = []
    for i in range(count):
        rough = rng.integers(0, 256, (3, 9, 16, 3), np.uint8)
        pictures = tuple(cv2.resize(picture, (640, 360), interpolation=cv2.INTER_CUBIC) for picture in rough)
        views.append(ClipView(thumbnails=pictures, captions=(Caption(source="list", text=_CAPTION.format(i)),)))  # type: ignore[arg-type]
    return views


def plain_loop(network: Any, preprocess: Any, tokenizer: Any, views: list[ClipView]) -> list[float]:
    """Similarity of each clip, one image and one caption at a time."""
    similarities = []
    with torch.no_grad():
        for view in views:
            text = network.encode_text(tokenizer([view.captions[0].text]))
            text /= text.norm(dim=-1, keepdim=True)
            cosines = []
            for bgr in view.thumbnails:
                image = network.encode_image(preprocess(Image.fromarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))[None])
                image /= image.norm(dim=-1, keepdim=True)
                cosines.append(float(image[0] @ text[0]))
            similarities.append(sum(cosines) / len(cosines))
    return similarities


def measure(model: str, views: list[ClipView], folder: Path) -> dict[str, float]:
    """Frames per CPU second of the plain loop, of ours, and of ours in bf16, and how much the results differ."""
    torch.manual_seed(0)
    network, _, preprocess = open_clip.create_model_and_transforms(model)
    network.eval()
    path = folder / f"{model}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    ours = {}
    for precision in ("fp32", "bf16"):
        ours[precision] = ClipEmbedder(ClipEmbedderConfig(model=model, pretrained=str(path), precision=precision))
        ours[precision].load()
    similarities: dict[str, Any] = {}

    def run(name: str) -> None:
        if name == "plain":
            similarities[name] = plain_loop(network, preprocess, open_clip.get_tokenizer(model), views)
        else:
            embedded = ours[name].embed(views)
            similarities[name] = [float((e.captions_CD @ e.frames_FD.T).mean()) for e in embedded]  # type: ignore[operator, union-attr]

    run("plain"), run("fp32"), run("bf16")  # what is done once is done before the clock starts
    seconds = interleaved(_RUNS, **{name: lambda name=name: run(name) for name in ("plain", "fp32", "bf16")})
    frames = sum(len(view.thumbnails) for view in views)
    rates = {name: frames / s for name, s in seconds.items()}
    differences = {
        f"{name}_difference": float(np.abs(np.subtract(similarities[name], similarities["plain"])).max())
        for name in ("fp32", "bf16")
    }
    return rates | differences


def main() -> None:
    """Print the table and, as the last line, the ratio for the first model (the others next to it)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="number of threads (a Ray worker has 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            figures = measure(model, clips(arguments.clips), Path(folder))
            ratios[model] = {name: round(figures[name] / figures["plain"], 2) for name in ("fp32", "bf16")}
            for name in ("plain", "fp32", "bf16"):
                difference = figures.get(f"{name}_difference")
                shown = "" if difference is None else f"{difference:.1e}"
                rows.append((model, name, figures[name], figures[name] / figures["plain"], shown))
    columns = ("model", "way", "frames per CPU-s", "times plain", "greatest difference of similarity")
    title = f"CLIP on {arguments.clips} clips of 3 pictures and a caption, {arguments.threads} thread(s), CPU"
    report(title, columns, rows, {"vs_plain_loop": ratios[arguments.models[0]]["fp32"], "models": ratios})


if __name__ == "__main__":
    main()
