"""The configuration beside CLIP weights, checked against an allow-list before anything is built from it.

open_clip passes what `open_clip_config.json` says to constructors and to transformers. So every key has to be one that
is known here, with a value of its type and within its bounds, and the names of other people's networks and tokenizers
have to be among those that open_clip or timm ship: no path, no `hf-hub:`, no `local-dir:`, no option that runs code.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from clipmill.config import Config
from clipmill.errors import UserError

CONFIG_FILE = "open_clip_config.json"
_MAX_FILE_BYTES = 1 << 20
_MAX_NOTICE_CHARS = 1000

_Width = Annotated[int, Field(ge=1, le=16384)]
_Heads = Annotated[int, Field(ge=1, le=256)]
_Layers = Annotated[int, Field(ge=1, le=128)]
_ImageSize = Annotated[int, Field(ge=1, le=2048)]
_Tokens = Annotated[int, Field(ge=1, le=4096)]
_Ratio = Annotated[float, Field(gt=0, le=64)]
_Unit = Annotated[float, Field(ge=0, le=1)]
_Rgb = Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=3, max_length=3)]


class _Checked(Config):
    model_config = ConfigDict(strict=True)


class _Activation(_Checked):
    approximate: Literal["none", "tanh"]


class _Norm(_Checked):
    eps: float = Field(gt=0, le=0.1)


class _Tokenizer(_Checked):
    """Options of open_clip's own wrapper; everything else would reach transformers, such as `trust_remote_code`."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool | None = None


class _Vision(_Checked):
    layers: _Layers | Annotated[list[_Layers], Field(min_length=4, max_length=4)] = 12
    width: _Width = 768
    head_width: _Width = 64
    mlp_ratio: _Ratio = 4.0
    patch_size: _ImageSize | None = 16
    image_size: _ImageSize | Annotated[list[_ImageSize], Field(min_length=2, max_length=2)] = 224
    ls_init_value: float | None = Field(None, ge=0, le=10)
    patch_dropout: _Unit = 0.0
    attentional_pool: bool | Literal["parallel", "cascade"] = False
    attn_pooler_queries: _Tokens = 256
    attn_pooler_heads: _Heads = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable"] = "learnable"
    final_ln_after_pool: bool = False
    pool_type: Literal["tok", "avg", "none"] = "tok"
    output_tokens: bool = False
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None
    timm_model_name: str | None = None
    timm_model_pretrained: bool = False
    timm_pool: Literal["", "avg", "map", "token", "abs_attn", "rot_attn"] = "avg"
    timm_proj: Literal["linear", "mlp", "none", ""] | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: _Unit = 0.0
    timm_drop_path: _Unit | None = None

    @field_validator("timm_model_name")
    @classmethod
    def _known_to_timm(cls, name: str | None) -> str | None:
        import timm

        if name is not None and not (re.fullmatch(r"[a-z0-9_]+", name) and timm.is_model(name)):
            raise ValueError(f"expected the name of a network that timm ships, got {_shown(name)}")
        return name

    @field_validator("timm_model_pretrained")
    @classmethod
    def _no_download(cls, _: bool) -> bool:
        """The weights are in the file; timm's own would be fetched to be overwritten."""
        return False


class _Text(_Checked):
    context_length: _Tokens = 77
    vocab_size: int = Field(49408, ge=1, le=2_000_000)
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: _Tokenizer | None = None
    width: _Width = 512
    heads: _Heads = 8
    layers: _Layers = 12
    mlp_ratio: _Ratio = 4.0
    ls_init_value: float | None = Field(None, ge=0, le=10)
    embed_cls: bool = False
    pad_id: int = Field(0, ge=0, le=2_000_000)
    no_causal_mask: bool = False
    final_ln_after_pool: bool = False
    pool_type: Literal["argmax", "first", "last", "none"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] | None = "linear"
    output_tokens: bool = False
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None
    hf_model_name: str | None = None
    hf_model_pretrained: bool = False
    hf_proj_type: Literal["linear", "mlp"] | None = "mlp"
    hf_pooler_type: Literal["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] = "mean_pooler"

    @field_validator("hf_tokenizer_name", "hf_model_name")
    @classmethod
    def _known_to_open_clip(cls, name: str | None, info: ValidationInfo) -> str | None:
        """Only repositories that open_clip's own architectures name: another could bring code, or be a path."""
        if name and name not in _hub_names(str(info.field_name)):
            raise ValueError(
                f"expected one of the repositories that open_clip's own models use, got {_shown(name)}; others could "
                "bring code with them"
            )
        return name


class _Multimodal(_Text):
    dim_head: _Width = 64
    n_queries: _Tokens = 256
    attn_pooler_heads: _Heads = 8


class _Architecture(_Checked):
    embed_dim: _Width
    vision_cfg: _Vision
    text_cfg: _Text
    multimodal_cfg: _Multimodal | None = None
    custom_text: bool = False
    quick_gelu: bool = False
    init_logit_scale: float = Field(2.66, ge=-100, le=100)
    init_logit_bias: float | None = Field(None, ge=-100, le=100)
    nonscalar_logit_scale: bool = False
    pad_id: int = Field(0, ge=0, le=2_000_000)


class _Preprocessing(_Checked):
    size: _ImageSize | Annotated[list[_ImageSize], Field(min_length=2, max_length=2)] = 224
    mode: Literal["RGB"] = "RGB"
    mean: _Rgb | None = None
    std: _Rgb | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = Field(0, ge=0, le=255)

    @field_validator("std")
    @classmethod
    def _divides(cls, std: list[float] | None) -> list[float] | None:
        if std is not None and min(std) <= 0:
            raise ValueError(f"expected deviations above 0, got {std}")
        return std


class ModelFolder(_Checked):
    """What `open_clip_config.json` may say. Keys that open_clip does not pass on are read by nobody."""

    model_config = ConfigDict(extra="ignore")

    model_cfg: _Architecture
    preprocess_cfg: _Preprocessing = Field(default_factory=_Preprocessing)
    notice: str | None = Field(None, max_length=_MAX_NOTICE_CHARS)

    def architecture(self) -> dict[str, Any]:
        """open_clip's `model_cfg`: what the file sets, and nothing else."""
        return self.model_cfg.model_dump(exclude_unset=True)

    def preprocess(self) -> dict[str, Any]:
        """What differs from open_clip's default preprocessing."""
        return self.preprocess_cfg.model_dump(exclude_unset=True, exclude_none=True)


def read_model_folder(folder: Path) -> ModelFolder:
    """The checked configuration of a model's folder. Raises UserError: damaged, or a key or value not allowed."""
    path = folder / CONFIG_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES:,} bytes")
        values = json.loads(content)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged: {error or type(error).__name__}") from error
    if not isinstance(values, Mapping) or not isinstance(values.get("model_cfg"), Mapping):
        raise UserError(f"{path} is damaged: expected an object with model_cfg, as open_clip writes it")
    known = {key: value for key, value in values.items() if key in ModelFolder.model_fields and value is not None}
    return ModelFolder.from_values(known, origin=f"{path} is refused")


def _hub_names(key: str) -> set[str]:
    import open_clip

    configs = (open_clip.get_model_config(name) or {} for name in open_clip.list_models())
    return {config["text_cfg"].get(key) for config in configs if config} - {None}


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]} ...")
