"""OpenCLIP models whose weights are found or fetched, checked and loaded: never a model with random weights.

A model is named as open_clip names it (`ViT-L-14`, with a tag or a checkpoint file), or is a folder in the layout of
open_clip's Hugging Face repositories (`open_clip_config.json` beside the weights), or `hf-hub:OWNER/NAME`.
"""

import hashlib
import json
import os
import pickle
import pickletools
import socket
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from curation.config import unknown_name
from curation.errors import UserError

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUB = "hf-hub:"
_OURS = "clipmill-"
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's weights are on this machine, and what goes with them."""

    name: str
    """For people: the model, and the tag or file."""
    architecture: str | Mapping[str, Any]
    """open_clip's name for it, or its configuration."""
    path: Path
    preprocess: Mapping[str, Any]
    """What differs from open_clip's default preprocessing."""
    quick_gelu: bool = False
    """Trained with OpenAI's approximate GELU, though the architecture's name does not say so."""
    notice: str | None = None
    """What whoever uses these weights should be told."""

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
    """A PIL picture to a (channel, height, width) float32 tensor."""
    tokenizer: Callable[[list[str]], Any]
    """Texts to a (text, position) int64 tensor, each cut at the model's context length."""


def find(model: str, pretrained: str | None) -> Weights:
    """Find the weights on this machine, or fetch them.

    `pretrained` is a tag or a checkpoint file for a model that open_clip knows by name; a folder or a Hugging Face
    repository brings its own weights. Raises UserError: no such model, no such tag or file, or weights that are not
    here and cannot be fetched (with where they were looked for and how to place them by hand).
    """
    if model.startswith(_HUB):
        return _from_hub(model, model.removeprefix(_HUB))
    if Path(model, CONFIG_FILE).is_file():
        return _from_folder(Path(model))
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model = model.replace("/", "-") if model.replace("/", "-") in open_clip.list_models() else model
    if model not in open_clip.list_models():
        if "/" in model or Path(model).exists():
            raise UserError(f"there is no CLIP model in {model}: a model's folder holds {CONFIG_FILE} and its weights")
        known = [name for name in open_clip.list_models() if not name.startswith(_OURS)]
        raise UserError(unknown_name("CLIP model", model, known))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        settings = get_pretrained_cfg(model, pretrained)
        path = _fetched(f"{model} ({pretrained})", settings)
        named_quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
        quick_gelu = bool(settings.get("quick_gelu")) and not named_quick
        preprocess = {key: settings[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in settings}
        name = f"{model} ({pretrained})"
        return Weights(name=name, architecture=model, path=path, preprocess=preprocess, quick_gelu=quick_gelu)
    if pretrained and Path(pretrained).is_file():
        return Weights(name=f"{model} ({pretrained})", architecture=model, path=Path(pretrained), preprocess={})
    raise UserError(
        f"the weights {pretrained!r} of CLIP model {model} were not found: this is neither a file nor one of its tags "
        f"({', '.join(tags) or 'it has none'}). Weights are never made up: name a tag or a checkpoint file."
    )


def load(model: str, pretrained: str | None, device: str = "cpu") -> Loaded:
    """Build the model and load its weights, all of them.

    Raises UserError as `find` does, and for a checkpoint that cannot be read safely (a pickle with code in it) or is
    of another architecture (with the first tensor that does not fit).
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    weights = find(model, pretrained)
    with tempfile.TemporaryDirectory() as folder:
        name = _registered(weights.architecture, Path(folder))
    try:
        # Without a tag these are random weights; load_checkpoint is strict and replaces every one of them.
        network = open_clip.create_model(name, force_quick_gelu=weights.quick_gelu, pretrained_hf=False)
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, TypeError, ImportError) as error:
        raise UserError(f"CLIP model {weights.name} cannot be built: {_short(error)}") from error
    _check_shapes(network, weights)
    try:
        open_clip.load_checkpoint(network, str(weights.path))
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{weights.path} does not fit CLIP model {weights.name}: {_short(error)}") from error
    size = {"size": network.visual.image_size} if getattr(network.visual, "image_size", None) else {}
    about = merge_preprocess_dict(PreprocessCfg(), {**weights.preprocess, **size})
    return Loaded(
        weights=weights,
        model=network.eval().to(device),
        preprocess=image_transform_v2(PreprocessCfg(**about), is_train=False),
        tokenizer=tokenizer,
    )


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file or of a torch file without code. Raises UserError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not _wants_to_run_code(path, error):
            raise UserError(f"{path} is no readable weight file: {_short(error)}") from error
        raise UserError(
            f"{path} is refused: it is a pickle that wants to run code when it is opened. Save its tensors alone, as "
            "safetensors, on a machine where you trust it."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        hint = " (a TorchScript archive has to be saved as safetensors first)" if "TorchScript" in str(error) else ""
        raise UserError(f"{path} is no readable weight file: {_short(error)}{hint}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(
        isinstance(t, torch.Tensor) and isinstance(k, str) for k, t in found.items()
    ):
        raise UserError(f"{path} holds no named tensors")
    return {key.removeprefix("module."): tensor for key, tensor in found.items()}


def _wants_to_run_code(path: Path, error: Exception) -> bool:
    """Whether it names functions to be called; other content is just not readable, such as half a download."""
    if "Unsupported global" in str(error):
        return True
    with suppress(ValueError, IndexError, OSError):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            pickles = [path.read_bytes()]
        calls = ("GLOBAL", "STACK_GLOBAL", "INST")
        return any(code.name in calls for content in pickles for code, _, _ in pickletools.genops(content))
    return False


def _from_folder(folder: Path, name: str | None = None) -> Weights:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        architecture, preprocess = dict(config["model_cfg"]), dict(config.get("preprocess_cfg") or {})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: {error!r}") from error
    path = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"the CLIP weights are missing: {folder} holds neither {' nor '.join(WEIGHT_FILES)}")
    notice = config.get("notice")
    return Weights(name=name or str(folder), architecture=architecture, path=path, preprocess=preprocess, notice=notice)


def _from_hub(name: str, repository: str) -> Weights:
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        _assure_reachable(repository)
        config = Path(download_pretrained_from_hf(repository, filename=CONFIG_FILE))
        download_pretrained_from_hf(repository)
    except Exception as error:
        raise _not_to_be_had(name, repository, error) from error
    return _from_folder(config.parent, name)


def _fetched(name: str, settings: Mapping[str, Any]) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        if settings.get("hf_hub"):
            _assure_reachable(settings["hf_hub"].rpartition("/")[0], settings["hf_hub"].rpartition("/")[2])
        return Path(download_pretrained(dict(settings)))
    except Exception as error:  # what a download can raise is not written down anywhere
        raise _not_to_be_had(name, settings.get("hf_hub") or settings.get("url", ""), error) from error


def _assure_reachable(repository: str, file: str = "") -> None:
    """Raise OSError at once where the file is not cached and the hub does not answer: it is tried for a minute else."""
    from huggingface_hub import constants, try_to_load_from_cache

    files = [file] if file else WEIGHT_FILES
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in files) or constants.HF_HUB_OFFLINE:
        return
    if not any(f"{kind}_proxy" in {name.lower() for name in os.environ} for kind in ("https", "http", "all")):
        place = urlsplit(constants.ENDPOINT)
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()


def _not_to_be_had(name: str, origin: str, error: Exception) -> UserError:
    from huggingface_hub.constants import HF_HUB_CACHE

    single = f"{name.partition(' ')[0]}-quickgelu" if "openai" in origin else name.partition(" ")[0]
    repository = origin.rpartition("/")[0] if origin.count("/") > 1 else origin
    wanted = f"{' or '.join(WEIGHT_FILES)} of huggingface.co/{repository}"
    by_hand = f"`hf download {repository} --local-dir FOLDER`"
    if "://" in origin:
        wanted, by_hand = origin, f"download {origin} there"
    return UserError(
        f"the weights of CLIP model {name} are not on this machine and cannot be fetched ({_short(error)}).\n"
        f"  wanted: {wanted}\n"
        f"  looked in: {HF_HUB_CACHE} and the network\n"
        f"  without network: where there is one, {by_hand}; copy FOLDER to the same place on every node, and give "
        "`clip: {model: FOLDER}` in the --config file (or a single file: "
        f"`clip: {{model: {single}, pretrained: FILE}}`); an aesthetic head is fetched as well, see docs/cluster.md\n"
        "  or leave out the scores that need it: --without similarity,aesthetic"
    )


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


def _check_shapes(network: Any, weights: Weights) -> None:
    """open_clip would stretch position embeddings of another size to fit, silently."""
    found = {key: tuple(tensor.shape) for key, tensor in read_tensors(weights.path).items()}
    for key, tensor in network.state_dict().items():
        expected = tuple(tensor.shape)
        if key in found and found[key] != expected and not key.startswith("logit_"):
            raise UserError(
                f"{weights.path} is a checkpoint of another architecture than {weights.name}: its tensor {key} has "
                f"shape {found[key]}, expected {expected}"
            )


def _short(error: Exception) -> str:
    """The first lines of what a library says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
