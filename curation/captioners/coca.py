"""CoCa: a caption of the middle frame, through open_clip (paper 3.1; Yu et al. 2022, arXiv 2205.01917).

Words are chosen greedily: the same image always gets the same caption. open_clip's own `generate` asks for a part of
transformers that was removed from it, and gives other captions with other versions of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import cv2
from pydantic import Field, model_validator

from clipmill.config import Config
from clipmill.errors import UserError
from clipmill.pipeline import Resources
from curation.captioners.base import Captioner, GeneratedCaption
from curation.inputs.caption import clean
from curation.scores import openclip
from curation.scores.base import ClipView
from curation.video.resize import Image

if TYPE_CHECKING:
    import torch


class CocaConfig(Config):
    """Settings of the captioner `coca`. The default weights are fine-tuned on human-written captions (COCO)."""

    model: str = "coca_ViT-L-14"
    """CoCa model name in open_clip."""
    pretrained: str | None = "mscoco_finetuned_laion2b_s13b_b90k"
    """An open_clip tag for the model, or a checkpoint file."""
    batch_size: int = Field(16, gt=0)
    """Images per forward pass. Lower it if a GPU runs out of memory."""
    min_tokens: int = Field(5, ge=1)
    """Minimum number of tokens per caption."""
    max_tokens: int = Field(30, gt=1)
    """Maximum number of tokens per caption, including start and end tokens, as in open_clip."""

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.min_tokens >= self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, expected less than max_tokens, {self.max_tokens}")
        return self


class Coca(Captioner):
    """Captioner `coca`: what the middle frame shows, in one short English sentence."""

    name = "coca"
    needs = ("thumbnails",)
    Config = CocaConfig
    may_change = ("batch_size",)

    def __init__(self, config: CocaConfig | None = None) -> None:
        super().__init__(config)
        self._config: CocaConfig = self.config
        self._device = "cpu"
        self._loaded: Any = None
        self.resources = Resources(num_gpus=1, max_cpus=4)

    def load(self, device: str = "cpu") -> None:
        """Load the weights. Raises UserError when they are missing or unfit, or the model cannot write captions."""
        config = self._config
        try:
            loaded = openclip.load(config.model, config.pretrained, device, section="captioners.coca")
        except UserError as error:
            raise type(error)(f"captioner {self.name}: {error}") from error
        if not hasattr(loaded.model, "text_decoder") or not hasattr(loaded.tokenizer, "decode"):
            raise UserError(f"{config.model} cannot generate captions; expected a CoCa model such as coca_ViT-L-14")
        if config.max_tokens > loaded.model.context_length:
            raise UserError(
                f"coca: max_tokens is {config.max_tokens}, but the context length is {loaded.model.context_length}"
            )
        self._loaded, self._device = loaded, device
        self.weights_digest = loaded.weights.digest()
        self.resources = replace(self.resources, memory_bytes=loaded.weights.size_bytes)

    def caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        """One caption per clip, in order. What a caption says does not depend on the other clips."""
        size = self._config.batch_size
        return [caption for i in range(0, len(batch), size) for caption in self._caption(batch[i : i + size])]

    def _caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        """One pass of the model. A failure on it is told by every clip of it."""
        import torch

        assert self._loaded is not None, "load() comes before caption()"
        answers: list[Any] = [self._prepare(clip) for clip in batch]
        ready = [i for i, answer in enumerate(answers) if isinstance(answer, torch.Tensor)]
        if not ready:
            return answers
        try:
            captions = self._write(torch.stack([answers[i] for i in ready]).to(self._device))
        except Exception as error:  # of a device, most often
            captions = [GeneratedCaption.failed(f"{type(error).__name__}: {error}")] * len(ready)
        for i, caption in zip(ready, captions, strict=True):
            answers[i] = caption
        return answers

    def _prepare(self, clip: ClipView) -> "torch.Tensor | GeneratedCaption":
        """The middle frame, preprocessed for the model (channel, height, width), or a failed caption."""
        if not clip.thumbnails:
            return GeneratedCaption.failed("the clip has no thumbnails")
        try:
            return self._loaded.preprocess(_to_pil(clip.thumbnails[len(clip.thumbnails) // 2]))
        except Exception as error:
            return GeneratedCaption.failed(f"{type(error).__name__}: {error}")

    def _write(self, images_BCHW: "torch.Tensor") -> list[GeneratedCaption]:
        tokenizer, captions = self._loaded.tokenizer, []
        tokens_BT = greedy(
            self._loaded.model,
            images_BCHW,
            start=tokenizer.sot_token_id,
            end=tokenizer.eot_token_id,
            min_tokens=self._config.min_tokens,
            max_tokens=self._config.max_tokens,
        )
        for tokens in tokens_BT.tolist():
            before_end = tokens[: tokens.index(tokenizer.eot_token_id)]
            text = clean(tokenizer.decode([token for token in before_end if token != tokenizer.sot_token_id]))
            empty = GeneratedCaption.failed("the model returned an empty caption")
            captions.append(GeneratedCaption(text=text) if text else empty)
        return captions


def greedy(
    model: Any, images_BCHW: "torch.Tensor", *, start: int, end: int, min_tokens: int, max_tokens: int
) -> "torch.Tensor":
    """The likeliest next token, again and again: (image, position) ids that begin with `start` and hold an `end`.

    What open_clip's `generate` does with generation_type "top_k" and top_k 1. Marks count: no caption ends before
    `min_tokens` of them, and each ends at `max_tokens`. After its end a row holds the model's padding.
    """
    import torch

    with torch.inference_mode():
        latents_BD, patches_BND = model._encode_image(images_BCHW)
        tokens_BT = torch.full((len(images_BCHW), 1), start, dtype=torch.long, device=images_BCHW.device)
        ended_B = torch.zeros(len(images_BCHW), dtype=torch.bool, device=images_BCHW.device)
        while not ended_B.all():
            likely = model(
                images_BCHW, tokens_BT, image_latent=latents_BD, image_embs=patches_BND, output_labels=False
            )["logits"][:, -1]
            if tokens_BT.shape[1] < min_tokens:
                likely[:, end] = -torch.inf
            next_B = likely.argmax(dim=-1)
            if tokens_BT.shape[1] + 1 == max_tokens:
                next_B = torch.full_like(next_B, end)
            next_B = torch.where(ended_B, model.pad_id, next_B)
            ended_B |= next_B == end
            tokens_BT = torch.cat((tokens_BT, next_B[:, None]), dim=1)
    return tokens_BT


def _to_pil(image_HWC: Image) -> Any:
    from PIL import Image as Pil

    return Pil.fromarray(cv2.cvtColor(image_HWC, cv2.COLOR_BGR2RGB))
