"""Shards of latents of the small world: the samples of `world.Stream`, as `clipmill cache-latents` writes them."""

from pathlib import Path

from tests.training.shards import about, write_shard
from tests.training.world import Stream, tiny_stage
from training.latents import latent_members
from training.stages import Stage


def write_latents(folder: Path, sizes: tuple[int, ...] = (5, 1, 6), stage: Stage | None = None) -> Path:
    """One shard per size."""
    stream, number = Stream(stage or tiny_stage()), 0
    for i, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            batch = stream.batch([number])
            assert batch.mean_BTCHW is not None
            assert batch.logvar_BTCHW is not None
            assert batch.ends_BECHW is not None
            assert batch.image_embeddings_BEC is not None
            assert batch.text_tokens_BNC is not None
            files = latent_members(
                about(),
                mean_TCHW=batch.mean_BTCHW[0],
                logvar_TCHW=batch.logvar_BTCHW[0],
                ends_ECHW=batch.ends_BECHW[0],
                fps=8.0,
                picture=False,
                embeddings_EC=batch.image_embeddings_BEC[0],
                tokens={0: batch.text_tokens_BNC[0]},
            )
            samples.append({"__key__": f"{number}", **files})
            number += 1
        write_shard(folder / f"latents-{i}.tar", samples)
    return folder
