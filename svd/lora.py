"""LoRA (Hu et al., arXiv 2106.09685), rank 16, on temporal attention: the camera motions of section 4.3, App. D.

W x becomes W x + (alpha / rank) B A x. A is initialized randomly and B to zero, so the initial output is unchanged.
Only A and B train. Adapters are applied to the query, key, value and output projections of temporal self-attention.
"""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipmill.errors import UserError
from svd.blocks import TemporalLayer
from svd.json_files import parse_object, read_object
from svd.keymap_unet import table
from svd.tensor_files import WeightsError, open_tensors, write_tensors
from svd.unet import UNet
from svd.weights import check_weights

RANK = 16

_PREFIX = "unet."
_PREFIXES = (_PREFIX, "base_model.model.", "")
"""Name prefixes of diffusers' trainers, of PEFT, and none."""
_METADATA = "lora_adapter_metadata"
_MAX_ALPHA = 65_536
_MATRICES = ("q", "k", "v", "out")


class LoraLinear(nn.Linear):
    """A linear layer with a LoRA adapter. Its base weights keep their names and are frozen."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.scale = alpha / rank
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return an equivalent plain layer: W + (alpha / rank) B A, summed in float32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        delta = self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())
        linear.weight = nn.Parameter((self.weight.float() + delta).to(self.weight.dtype))
        linear.bias = self.bias
        return linear.train(self.training)


def add_lora(unet: UNet, *, rank: int = RANK, alpha: float | None = None) -> list[nn.Parameter]:
    """Freeze `unet` and add an adapter to each temporal attention projection; `alpha` defaults to `rank`.

    Returns the adapters' parameters, the only ones that train. Raises UserError for a network without temporal layers
    or with existing adapters, and for a rank below 1.
    """
    if rank < 1:
        raise UserError(f"expected a rank of at least 1, got {rank}")
    if any(isinstance(module, LoraLinear) for module in unet.modules()):
        raise UserError("the network already has LoRA adapters; merge them first")
    attentions = [module.self_attention for module in unet.modules() if isinstance(module, TemporalLayer)]
    if not attentions:
        raise UserError("LoRA adapts temporal attention, but the network has no temporal layers; use a video UNet")
    unet.requires_grad_(False)
    for attention in attentions:
        for name in _MATRICES:
            adapted = LoraLinear(getattr(attention, name), rank, rank if alpha is None else alpha)
            setattr(attention, name, adapted.train(unet.training))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def merge_lora(unet: UNet) -> None:
    """Merge every adapter into its weight and remove it, which restores the original modules and speed.

    Parameters frozen by `add_lora` stay frozen. Raises UserError for a network without adapters.
    """
    for name, layer in _adapted(unet).items():
        owner, _, attribute = name.rpartition(".")
        setattr(unet.get_submodule(owner), attribute, layer.merged().requires_grad_(False))


def save_lora(unet: UNet, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Save the adapters only, under the names of diffusers and PEFT, such as
    `unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.lora_A.weight`.

    Rank and alpha are stored in the metadata, where diffusers expects them.
    """
    layers = _adapted(unet)
    names = _names(unet, layers)
    first = next(iter(layers.values()))
    rank = first.lora_A.out_features
    settings = {
        "r": rank,
        "lora_alpha": first.scale * rank,
        "target_modules": sorted({name.removesuffix(".lora_A.weight") for name in names if ".lora_A." in name}),
    }
    write_tensors(
        path,
        {_PREFIX + name: tensor for name, tensor in names.items()},
        dtype=dtype,
        metadata={_METADATA: json.dumps({_PREFIX + key: value for key, value in settings.items()})},
    )


def load_lora(unet: UNet, path: str | Path) -> None:
    """Load adapters from a file or a PEFT folder and add them to `unet`, as `add_lora` does. The rank is inferred from
    the tensors; alpha is read from the metadata or from PEFT's adapter_config.json, and defaults to the rank.

    Raises FileNotFoundError; WeightsError, before anything is changed, if the file is damaged or its adapters do not
    match this network's temporal attention; UserError as `add_lora`.
    """
    with ExitStack() as files:
        stored = open_tensors(path, files)
        names_of_a = [name for name in stored if name.endswith("lora_A.weight")]
        if not names_of_a:
            raise WeightsError(f"{path} has {len(stored)} tensors but no lora_A.weight; expected LoRA adapters")
        prefix = next(prefix for prefix in _PREFIXES if names_of_a[0].startswith(prefix))
        rank = stored[names_of_a[0]].shape[0]
        alpha = _alpha(Path(path), stored[names_of_a[0]].file.metadata() or {})
        with torch.device("meta"):
            template = UNet(unet.config)
        add_lora(template, rank=rank)
        shapes = {prefix + name: tuple(tensor.shape) for name, tensor in _names(template, _adapted(template)).items()}
        check_weights(path, stored, shapes)
        add_lora(unet, rank=rank, alpha=alpha)
        with torch.no_grad():
            for name, parameter in _names(unet, _adapted(unet)).items():
                parameter.copy_(stored[prefix + name].read())


def _alpha(path: Path, metadata: dict[str, str]) -> float | None:
    peft_config = (path if path.is_dir() else path.parent) / "adapter_config.json"
    try:
        if _METADATA in metadata:
            alpha = parse_object(metadata[_METADATA], f"the metadata of {path}").get(f"{_PREFIX}lora_alpha")
        else:
            alpha = read_object(peft_config).get("lora_alpha") if peft_config.is_file() else None
    except ValueError as error:
        raise WeightsError(str(error)) from error
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if alpha is not None and not (number and 0 < alpha <= _MAX_ALPHA):
        raise WeightsError(f"{path} has lora_alpha {alpha!r}, expected a number above 0 and up to {_MAX_ALPHA:,}")
    return cast("float | None", alpha)


def _adapted(unet: UNet) -> dict[str, LoraLinear]:
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLinear)}
    if not layers:
        raise UserError("the network has no LoRA adapters; add or load them first")
    return layers


def _names(unet: UNet, layers: dict[str, LoraLinear]) -> dict[str, Tensor]:
    """Adapter tensors under diffusers' names."""
    return dict(_name_each(table(unet.config, "diffusers"), layers))


def _name_each(names: dict[str, str], layers: dict[str, LoraLinear]) -> Iterator[tuple[str, Tensor]]:
    for name, layer in layers.items():
        theirs = names[f"{name}.weight"].removesuffix(".weight")
        for part in ("lora_A", "lora_B"):
            yield f"{theirs}.{part}.weight", cast("nn.Linear", getattr(layer, part)).weight
