"""The autoencoder, image encoder and text encoder of the demo's video model, at the demo's size.

The first two were trained on rendered footage only (`demo.train_parts`) and are stored in this repository. The text
encoder is the text tower of the demo's CLIP. None of them is useful for real videos.
"""

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from curation.scores import openclip
from demo.model import FOLDER as CLIP
from svd.autoencoder import Autoencoder, AutoencoderConfig
from svd.checkpoint import save_model
from svd.clip import ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig
from svd.config import UNetConfig
from svd.model import Model, ModelConfig
from svd.unet import UNet

WEIGHTS = Path(__file__).with_name("weights")
NOTICE = "clipmill's demo: trained on rendered footage only"
FRAMES, HEIGHT_PX, WIDTH_PX, RATE_FPS = 8, 64, 96, 8.0

CONTEXT_WIDTH = 48
"""Width of the text tower of the demo's CLIP."""
AUTOENCODER = AutoencoderConfig(widths=(16, 32, 64, 64), blocks_per_level=1, groups=4, scale_factor=1.0)
IMAGE_ENCODER = ImageEncoderConfig.tiny(CONTEXT_WIDTH)
TEXT_ENCODER = TextEncoderConfig(tokens=32, width=CONTEXT_WIDTH, layers=2, heads=4, mlp_width=4 * CONTEXT_WIDTH)
UNET = {
    "widths": (32, 64, 96), "attention": (False, True, True), "blocks_per_level": 1, "groups": 8, "head_width": 32,
    "context_width": CONTEXT_WIDTH, "id_width": 32,
}  # fmt: skip
"""The demo's overrides of the UNet presets: 5 M parameters; a CPU trains a step of eight clips in 0.3 s."""

_Network = TypeVar("_Network", bound=nn.Module)


def save_part(name: str, part: nn.Module, folder: Path = WEIGHTS) -> None:
    """Save a trained part (`autoencoder` or `image_encoder`) with matrices in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: (t.half() if t.ndim > 1 else t).contiguous() for key, t in part.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata={"notice": NOTICE})


def load_autoencoder(folder: Path = WEIGHTS) -> Autoencoder:
    """Load the demo's autoencoder, frozen."""
    return _filled(Autoencoder(AUTOENCODER), folder / "autoencoder.safetensors")


def initial_image_model(folder: Path = WEIGHTS) -> Model:
    """Build an image model with an untrained network: the initial model of stage I. It includes the image encoder for
    later stages.
    """
    unet = UNetConfig.preset("sd21", **UNET)
    text_encoder = TextEncoder(TEXT_ENCODER)
    tower = openclip.load(str(CLIP), None).model.state_dict()
    text_encoder.load_state_dict({name: tower[name].float() for name in text_encoder.state_dict()})
    return Model(
        config=ModelConfig(
            unet=unet,
            autoencoder=AUTOENCODER,
            image_encoder=IMAGE_ENCODER,
            text_encoder=TEXT_ENCODER,
            width_px=WIDTH_PX,
            height_px=HEIGHT_PX,
        ),
        unet=UNet(unet),
        autoencoder=load_autoencoder(folder),
        image_encoder=_filled(ImageEncoder(IMAGE_ENCODER), folder / "image_encoder.safetensors"),
        text_encoder=text_encoder.requires_grad_(False).eval(),
    )


def write_initial(target: Path) -> Path:
    """Save `initial_image_model` as a model folder."""
    save_model(initial_image_model(), target)
    return target


def _filled(network: _Network, path: Path) -> _Network:
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    network.requires_grad_(False).eval()
    return network
