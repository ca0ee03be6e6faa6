"""Find, download, validate and load OpenCLIP models; never falls back to random weights.

A model is an open_clip name (`ViT-L-14`, with a tag or a checkpoint file), a folder in the layout of open_clip's
Hugging Face repositories (`open_clip_config.json` next to the weights), or `hf-hub:OWNER/NAME`.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.config import unknown_name
from clipmill.errors import UserError
from curation.scores.openclip_config import CONFIG_FILE, read_model_folder
from curation.scores.weight_fetch import WeightsMissing, check_answers
from curation.scores.weight_files import check_shapes, short

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OF_SCORES = "clip_embedder"
"""Section of the configuration with the CLIP model of scores."""
_OTHERWISE = """; the aesthetic head is downloaded separately, see docs/cluster.md
  or skip the scores that need it: --without similarity,aesthetic"""
_HUB = "hf-hub:"
_LARGEST_ASPECT = 8
"""Of an image that is resized as a whole; what models look at is close to a square."""
_OURS = "clipmill-"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's weights are on this machine, and what goes with them."""

    name: str
    """Display name: the model, and the tag or file."""
    architecture: str | Mapping[str, Any]
    """open_clip's name for it, or its configuration."""
    path: Path
    preprocess: Mapping[str, Any]
    """What differs from open_clip's default preprocessing."""
    quick_gelu: bool = False
    """Trained with OpenAI's approximate GELU, though the architecture's name does not say so."""
    notice: str | None = None
    """Notice for users of these weights."""

    @property
    def size_bytes(self) -> int:
        """Of the weight file, which is about what the model takes in memory."""
        return self.path.stat().st_size

    def digest(self) -> str:
        """The first 16 hex digits of the weight file's sha256."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in evaluation mode, with its preprocessing and its tokenizer."""

    weights: Weights
    model: Any
    preprocess: Callable[[Any], Any]
    """A PIL image to a (channel, height, width) float32 tensor."""
    tokenizer: Callable[[list[str]], Any]
    """Texts to a (text, position) int64 tensor, each cut at the model's context length."""


def find(model: str, pretrained: str | None, *, section: str = OF_SCORES) -> Weights:
    """Find the weights on this machine, or fetch them.

    `pretrained` is a tag or a checkpoint file for a model that open_clip knows by name; a folder or a Hugging Face
    repository brings its own weights. Raises UserError: no such model, no such tag or file, or weights that are not
    here and cannot be fetched (with where they were looked for and how to place them by hand: in `section` of the
    configuration).
    """
    if model.startswith(_HUB):
        return _from_hub(model, model.removeprefix(_HUB), section)
    if Path(model, CONFIG_FILE).is_file():
        return _from_folder(Path(model))
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model = model.replace("/", "-") if model.replace("/", "-") in open_clip.list_models() else model
    if model not in open_clip.list_models():
        if "/" in model or Path(model).exists():
            raise UserError(f"no CLIP model in {model}: expected {CONFIG_FILE} and weights in the folder")
        known = [name for name in open_clip.list_models() if not name.startswith(_OURS)]
        raise UserError(unknown_name("CLIP model", model, known))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        settings = get_pretrained_cfg(model, pretrained)
        path = _fetched(f"{model} ({pretrained})", settings, section)
        named_quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
        quick_gelu = bool(settings.get("quick_gelu")) and not named_quick
        preprocess = {key: settings[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in settings}
        name = f"{model} ({pretrained})"
        return Weights(name=name, architecture=model, path=path, preprocess=preprocess, quick_gelu=quick_gelu)
    if pretrained and Path(pretrained).is_file():
        return Weights(name=f"{model} ({pretrained})", architecture=model, path=Path(pretrained), preprocess={})
    raise UserError(
        f"the weights {pretrained!r} of CLIP model {model} were not found: expected a file or one of its tags "
        f"({', '.join(tags) or 'it has none'}). clipmill never falls back to random weights: specify a tag or a "
        "checkpoint file."
    )


def load(model: str, pretrained: str | None, device: str = "cpu", *, section: str = OF_SCORES) -> Loaded:
    """Build the model and load its weights, all of them.

    Raises UserError as `find` does, and for a checkpoint that cannot be read safely (a pickle with code in it) or is
    of another architecture (with the first tensor that does not fit).
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    weights = find(model, pretrained, section=section)
    with tempfile.TemporaryDirectory() as folder:
        name = _registered(weights.architecture, Path(folder))
    # open_clip would stretch position embeddings of another size to fit, silently.
    check_shapes(_on_meta(name, weights).state_dict(), weights.path, f"CLIP model {weights.name}")
    try:
        # Without a tag these are random weights; load_checkpoint is strict and replaces every one of them.
        network = open_clip.create_model(name, force_quick_gelu=weights.quick_gelu, pretrained_hf=False)
        tokenizer = _tokenizer(name)
    except Exception as error:
        raise _not_built(weights, error) from error
    try:
        open_clip.load_checkpoint(network, str(weights.path))
    except Exception as error:  # names and tensors of a file go through conversions of open_clip's
        raise UserError(f"{weights.path} does not fit CLIP model {weights.name}: {short(error)}") from error
    size = {"size": network.visual.image_size} if getattr(network.visual, "image_size", None) else {}
    preprocess_config = merge_preprocess_dict(PreprocessCfg(), {**weights.preprocess, **size})
    return Loaded(
        weights=weights,
        model=network.eval().to(device),
        preprocess=_for_thin_images(
            image_transform_v2(PreprocessCfg(**preprocess_config), is_train=False), preprocess_config["resize_mode"]
        ),
        tokenizer=tokenizer,
    )


def _for_thin_images(preprocess: Callable[[Any], Any], resize_mode: str) -> Callable[[Any], Any]:
    """`preprocess` in bounded memory: it makes the shorter side as long as the model's, and then crops the longer one.

    An image of 640x2 would be 72,000 pixels wide in between. So what is cropped in the end is left out before.
    """

    def cropped(image: Any) -> Any:
        width, height = image.size
        longest = _LARGEST_ASPECT * min(width, height)
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        if left or top:
            image = image.crop((left, top, width - left, height - top))
        return preprocess(image)

    return cropped if resize_mode == "shortest" else preprocess


def _from_folder(folder: Path, name: str | None = None) -> Weights:
    config = read_model_folder(folder)
    path = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"the CLIP weights are missing: expected {' or '.join(WEIGHT_FILES)} in {folder}")
    return Weights(
        name=name or str(folder),
        architecture=config.architecture(),
        path=path,
        preprocess=config.preprocess(),
        notice=config.notice,
    )


def _from_hub(name: str, repository: str, section: str) -> Weights:
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        _check_reachable(repository, WEIGHT_FILES)
        config = Path(download_pretrained_from_hf(repository, filename=CONFIG_FILE))
        download_pretrained_from_hf(repository)
    except Exception as error:
        raise _unavailable_error(name, repository, error, section) from error
    return _from_folder(config.parent, name)


def _fetched(name: str, settings: Mapping[str, Any], section: str) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        if settings.get("hf_hub"):
            repository, _, file = settings["hf_hub"].rpartition("/")
            _check_reachable(repository, [file] if file else WEIGHT_FILES)
        return Path(download_pretrained(dict(settings)))
    except Exception as error:  # what a download can raise is not written down anywhere
        raise _unavailable_error(name, settings.get("hf_hub") or settings.get("url", ""), error, section) from error


def _check_reachable(repository: str, files: Sequence[str]) -> None:
    """Raise OSError within seconds where no file is cached and the hub does not answer; its client tries for longer."""
    from huggingface_hub import constants, try_to_load_from_cache

    cached = any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)
    if not cached and not constants.HF_HUB_OFFLINE:
        check_answers(f"{constants.ENDPOINT}/{repository}/resolve/main/{CONFIG_FILE}")


def _unavailable_error(name: str, origin: str, error: Exception, section: str) -> WeightsMissing:
    from huggingface_hub.constants import HF_HUB_CACHE

    single = f"{name.partition(' ')[0]}-quickgelu" if "openai" in origin else name.partition(" ")[0]
    repository = origin.rpartition("/")[0] if origin.count("/") > 1 else origin
    wanted = f"{' or '.join(WEIGHT_FILES)} of huggingface.co/{repository}"
    by_hand = f"`hf download {repository} --local-dir FOLDER`"
    if "://" in origin:
        wanted, by_hand = origin, f"download {origin} there"
    return WeightsMissing(
        f"the weights of CLIP model {name} are not on this machine and cannot be downloaded ({short(error)}).\n"
        f"  needed: {wanted}\n"
        f"  searched: {HF_HUB_CACHE} and the network\n"
        f"  offline: on a machine with a network, {by_hand}; copy FOLDER to the same path on every node, and set "
        f"`{_setting(section, 'model: FOLDER')}` in the --config file (or a single file: "
        f"`{_setting(section, f'model: {single}, pretrained: FILE')}`)" + (_OTHERWISE if section == OF_SCORES else "")
    )


def _setting(section: str, values: str) -> str:
    """Settings in a section of the configuration, as YAML on one line."""
    outer, *inner = section.split(".")
    return f"{outer}: {{{_setting('.'.join(inner), values) if inner else values}}}"


def _registered(architecture: str | Mapping[str, Any], folder: Path) -> str:
    """The name under which open_clip knows the architecture from now on."""
    import open_clip

    if isinstance(architecture, str):
        return architecture
    content = json.dumps(architecture, sort_keys=True)
    name = f"{_OURS}{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    (folder / f"{name}.json").write_text(content, encoding="utf-8")
    open_clip.add_model_config(folder / f"{name}.json")
    if name not in open_clip.list_models():
        raise UserError(f"{CONFIG_FILE} describes no CLIP model: expected embed_dim, vision_cfg and text_cfg")
    return name


def _tokenizer(name: str) -> Any:
    """open_clip's tokenizer. One of transformers' may not run code of its repository, or of a folder of that name."""
    import open_clip

    text = (open_clip.get_model_config(name) or {})["text_cfg"]
    return open_clip.get_tokenizer(name, **({"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}))


def _on_meta(name: str, weights: Weights) -> Any:
    """The architecture without memory behind it. Raises UserError where it cannot be built."""
    import open_clip
    import torch

    try:
        with torch.device("meta"):
            return open_clip.create_model(name, force_quick_gelu=weights.quick_gelu, pretrained_hf=False, device="meta")
    except Exception as error:  # whatever sizes that do not go together make of the constructors
        raise _not_built(weights, error) from error


def _not_built(weights: Weights, error: Exception) -> UserError:
    return UserError(f"CLIP model {weights.name} cannot be built: {short(error)}")
