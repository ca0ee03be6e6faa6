"""Training objective: latents, conditioning, conditioning dropout, noise, loss (sections 4.1 to 4.5, App. D).

All randomness comes from one stream per sample, seeded by (seed, step, index in the step). Ranks therefore draw
different noise, two ranks draw the same as one with twice the batch, and a resumed run draws the same as an
uninterrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipmill.errors import UserError
from svd.conditioning import (
    Conditioning,
    Ids,
    concat_ends,
    concat_picture,
    encode_picture,
    ids_tensor,
    image_context,
    sample_augmentation,
)
from svd.model import NEEDS, Model, Task, task_of
from svd.noise import Schedule, denoising_loss
from svd.sampler import SeededNoise
from training.batch import Batch, without_waiting
from training.encoding import encode_frames, signed
from training.seeds import seed_of
from training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random draws for the samples of a batch."""

    sigma_B: Tensor
    """One noise level per video."""
    augmentation_B: Tensor
    """Standard deviation of the noise on conditioning images."""
    share_B: Tensor
    """Uniform in [0, 1): below the dropout rate, the sample's condition is dropped."""
    noise: "Noise"


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One value per sample, float32."""

    loss_B: Tensor
    sigma_B: Tensor
    """On the CPU."""


def draw(schedule: Schedule, seeds: Sequence[int]) -> Draws:
    """Draw for samples with these seeds, on the CPU regardless of the network's device."""
    streams = [torch.Generator().manual_seed(seed_of(seed, 0)) for seed in seeds]
    return Draws(
        sigma_B=torch.cat([schedule.sample_sigma(1, generator=stream) for stream in streams]),
        augmentation_B=torch.cat([sample_augmentation(1, generator=stream) for stream in streams]),
        share_B=torch.cat([torch.rand(1, generator=stream) for stream in streams]),
        noise=Noise([seed_of(seed, 1) for seed in seeds]),
    )


class Noise(SeededNoise):
    """Drawn on the CPU and moved to the device asynchronously."""

    def __call__(self, like: Tensor) -> Tensor:
        drawn = super().__call__(torch.empty((), dtype=like.dtype).expand(like.shape))
        return without_waiting(drawn, like.device)


class Objective:
    """The loss of a stage. Raises UserError for a model without the encoders the stage's conditioning needs."""

    def __init__(self, model: Model, stage: Stage) -> None:
        self.model, self.stage = model, stage
        self.schedule = stage.noise.build()
        self.task: Task = task_of(model.unet.config)
        self._empty_NC: Tensor | None = None

    def __call__(self, network: nn.Module, batch: Batch, seeds: Sequence[int]) -> Losses:
        """Per-sample loss; `network` is the model's UNet or a wrapper around it."""
        draws = draw(self.schedule, seeds)
        # What is frozen runs in float32 also in a bf16 step, as where latents are computed once: the released
        # autoencoder overflows in half precision (diffusers' force_upcast).
        with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
            x0_BTCHW = self._latents(batch, draws.noise)
            noise_BTCHW = draws.noise(x0_BTCHW)
            conditioning = self._conditioning(batch, draws, frames=x0_BTCHW.shape[1])
        image_only = {"image_only_B": torch.ones(len(batch), dtype=torch.bool)} if self._pictures(batch) else {}
        loss_B = denoising_loss(
            network,
            x0_BTCHW,
            noise_BTCHW,
            without_waiting(draws.sigma_B, x0_BTCHW.device),
            self.schedule,
            **conditioning.arguments(),
            **image_only,
        )
        return Losses(loss_B=loss_B, sigma_B=draws.sigma_B)

    def _pictures(self, batch: Batch) -> bool:
        """Image mask for joint training; None for image networks, which do not need it."""
        return batch.image_only and self.model.unet.config.temporal

    def _latents(self, batch: Batch, noise: SeededNoise) -> Tensor:
        """x0: a sample of each frame's posterior, scaled to unit variance."""
        if batch.mean_BTCHW is not None and batch.logvar_BTCHW is not None:
            mean_BTCHW, logvar_BTCHW = batch.mean_BTCHW.float(), batch.logvar_BTCHW.float()
        else:
            assert batch.frames_BTCHW is not None
            posterior = encode_frames(self.model.autoencoder, batch.frames_BTCHW)
            mean_BTCHW, logvar_BTCHW = posterior.mean.float(), posterior.logvar.float()
        sample_BTCHW = mean_BTCHW + (0.5 * logvar_BTCHW).exp() * noise(mean_BTCHW)
        return self.model.autoencoder.config.scale_factor * sample_BTCHW

    def _conditioning(self, batch: Batch, draws: Draws, frames: int) -> Conditioning:
        conditioning = self._text(batch) if NEEDS[self.task] == "text_encoder" else self._picture(batch, draws, frames)
        ids, device = ids_tensor(_ids(batch, draws.augmentation_B), self.model.unet.config.ids), self.model.device
        whole = Conditioning(
            context_BNC=conditioning.context_BNC,
            ids_BK=None if ids is None else without_waiting(ids, device),
            concat_BTCHW=conditioning.concat_BTCHW,
        )
        dropout = self.stage.conditioning_dropout
        return whole.drop(
            context_B=without_waiting(draws.share_B < dropout.context, device),
            concat_B=without_waiting(draws.share_B < dropout.concat, device),
            empty_NC=self._empty_NC,
        )

    def _text(self, batch: Batch) -> Conditioning:
        encoder = self.model.text_encoder
        if self._empty_NC is None:
            if encoder is None:
                raise UserError("text dropout requires a text encoder for the empty text; set model.text_encoder")
            self._empty_NC = encoder([""])[0].float().to(self.model.device)
        if batch.text_tokens_BNC is not None:
            return Conditioning(context_BNC=batch.text_tokens_BNC.float())
        assert encoder is not None
        return Conditioning(context_BNC=encoder(batch.captions).float())

    def _picture(self, batch: Batch, draws: Draws, frames: int) -> Conditioning:
        """CLIP encodes the clean images; the autoencoder encodes them with noise."""
        ends_BECHW = batch.ends_BECHW if batch.frames_BTCHW is None else batch.frames_BTCHW[:, [0, -1]]
        if ends_BECHW is None:
            raise UserError(
                f"{batch.keys[0]} has latents but no end frames, which conditioning requires; cache the latents again"
            )
        count = 2 if self.task == "interpolation" else 1
        pictures = [signed(ends_BECHW[:, i]) for i in range(count)]
        embeddings = self._embeddings(batch, pictures)
        augmentation_B = without_waiting(draws.augmentation_B, ends_BECHW.device)
        latents = [
            encode_picture(self.model.autoencoder, picture_BCHW, draws.noise(picture_BCHW), augmentation_B)
            for picture_BCHW in pictures
        ]
        concat_BTCHW = concat_ends(latents[0], latents[1], frames) if count == 2 else concat_picture(latents[0], frames)
        return Conditioning(context_BNC=image_context(*embeddings), concat_BTCHW=concat_BTCHW.float())

    def _embeddings(self, batch: Batch, pictures: Sequence[Tensor]) -> list[Tensor]:
        if batch.image_embeddings_BEC is not None:
            return [batch.image_embeddings_BEC[:, i].float() for i in range(len(pictures))]
        if self.model.image_encoder is None:
            raise UserError(f"a model for {self.task} requires an image encoder; set model.image_encoder")
        return [self.model.image_encoder(picture_BCHW).float() for picture_BCHW in pictures]


def _ids(batch: Batch, augmentation_B: Tensor) -> list[Ids]:
    """Clamp frame rates to at least 1, the minimum of the frame rate id."""
    values = zip(
        batch.fps.tolist(),
        batch.motion_bucket.tolist(),
        augmentation_B.tolist(),
        batch.elevation.tolist(),
        strict=True,
    )
    return [
        Ids(fps=max(1.0, fps), motion_bucket=motion, noise_augmentation=augmentation, elevation=elevation)
        for fps, motion, augmentation, elevation in values
    ]
