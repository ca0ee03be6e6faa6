"""Cache latents: convert a shard of clips or images to a shard of their latents, so that training skips encoding.

Training then needs neither video decoding nor the autoencoder, but sees only `augmentations_per_clip` draws of frames
and crop per clip.
"""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from clipmill import storage
from clipmill.atomic import atomic_path
from clipmill.errors import UserError
from clipmill.shard_folder import FailedClip, Members, ShardRecord, read_record, write_record
from clipmill.transfers import upload
from svd.model import Model
from training.data_config import DataConfig
from training.encoding import encode_frames, signed
from training.index_cache import INCOMPLETE
from training.latents import latent_members
from training.metadata import sample_metadata
from training.read_ahead import read_ahead
from training.sample_error import SampleError
from training.samples import read_sample
from training.seeds import seed_of
from training.shards import VERSION_MARK, Shard, ShardIndex


def cache_shard(
    shard: Shard,
    out: Path | str,
    model: Model,
    config: DataConfig,
    *,
    digests: Mapping[str, str] | None = None,
    augmentations_per_clip: int = 1,
    commit: Callable[[], None] = lambda: None,
    on_sample: Callable[[int], None] = lambda row: None,
) -> ShardRecord:
    """Write OUT/SHARD.tar with the latents of `shard`, then its record OUT/SHARD.json; `out` is a local path or an
    fsspec URL. A complete one from an earlier process is kept if the source is unchanged. Broken samples are skipped
    and listed in the record.

    Each sample gets `augmentations_per_clip` draws of frames, rate and crop: KEY, then KEY_1, KEY_2 and so on.
    `digests` are the model's, if known (`weight_digests`). `commit` is called before the shard is renamed to its final
    name and raises to prevent that; `on_sample` is called with the index of each finished sample.
    """
    done = cached(out, shard)
    if done is not None:
        return done
    fingerprint = shard.fingerprint
    encode = partial(_encode_sample, model, config, digests or weight_digests(model))
    failed = [FailedClip(clip_id=key, error_kind=INCOMPLETE, error=reason) for key, reason in shard.broken]
    contents = read_ahead(((shard, row) for row in range(len(shard))), config)
    with _written(str(out), f"{shard.name}.tar") as temporary:
        members = _write_tar(
            temporary, _latent_samples(shard, contents, encode, failed, augmentations_per_clip, on_sample)
        )
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())  # the rename that follows `commit` syncs again; here it delays nothing
        size = temporary.stat().st_size
        commit()
    record = ShardRecord(
        name=f"{shard.name}.tar",
        samples=len(members.keys),
        bytes=size,
        sha256=digest,
        fingerprint=fingerprint,
        problem=shard.problem,
        failed=tuple(failed),
        members=members,
    )
    write_record(str(out), record)
    return record


@contextmanager
def _written(out: str, name: str) -> Iterator[Path]:
    """A temporary file on the local disk, which appears as OUT/NAME when the block ends."""
    fs, folder = storage.filesystem(out)
    if storage.is_local(fs):
        with atomic_path(Path(folder) / name) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="clipmill-") as scratch:
        yield Path(scratch) / name
        upload(Path(scratch) / name, f"{out.rstrip('/')}/{name}")


def _write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Members:
    """Write (key, files by extension) to a tar; returns where each file lies in it."""
    keys: list[str] = []
    ranges: dict[str, list[tuple[int, int]]] = {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, files in samples:
            keys.append(key)
            for extension, content in files.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
                padded = -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                ranges.setdefault(extension, []).append((tar.offset - padded, entry.size))
    return Members(keys=tuple(keys), ranges={extension: tuple(places) for extension, places in ranges.items()})


def cached(out: Path | str, shard: Shard) -> ShardRecord | None:
    """The record of the latents of `shard`; None if they are missing, truncated, or stale."""
    fs, folder = storage.filesystem(str(out))
    fs.invalidate_cache(folder)  # other processes write there
    try:
        record = read_record(str(out), f"{shard.name}.tar")
        if record is None or not _is_of(record.fingerprint, shard):
            return None
        return record if fs.size(f"{folder}/{record.name}") == record.bytes else None
    except (OSError, ValueError):
        return None


def check_names(index: ShardIndex) -> None:
    """Raise UserError if two shards share a name, since their latents would be written to the same file."""
    paths: dict[str, str] = {}
    for shard in index.shards:
        other = paths.setdefault(shard.name, shard.path)
        if other != shard.path:
            raise UserError(
                f"duplicate shard name: {other} and {shard.path}; cache their latents into separate folders"
            )


def _is_of(fingerprint: str | None, shard: Shard) -> bool:
    """Whether latents with this fingerprint were computed from the shard. If it has moved between a disk and a store,
    whose versions are not comparable, only the size is compared, as when a run is resumed."""
    now, before = shard.fingerprint, fingerprint or ""
    moved = (VERSION_MARK in now) != (VERSION_MARK in before)
    return before.partition(",")[0] == now.partition(",")[0] if moved else before == now


def _latent_samples(
    shard: Shard,
    contents: Iterator[Callable[[], Mapping[str, bytes]]],
    encode: Callable[[str, Mapping[str, bytes], int], dict[str, bytes]],
    failed: list[FailedClip],
    augmentations_per_clip: int,
    on_sample: Callable[[int], None],
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, files) of each sample; unreadable ones are added to `failed`."""
    for row in range(len(shard)):
        key = shard.key(row)
        name = key.partition("/")[2]
        try:
            members = next(contents)()
            for draw in range(augmentations_per_clip):
                yield f"{name}_{draw}" if draw else name, encode(key, members, draw)
        except SampleError as error:
            failed.append(FailedClip(clip_id=name, error_kind=error.kind, error=error.message))
        except EOFError as error:
            failed.append(FailedClip(clip_id=name, error_kind="truncated", error=str(error)))
        on_sample(row)


@torch.no_grad()
def _encode_sample(
    model: Model, config: DataConfig, digests: Mapping[str, str], key: str, members: Mapping[str, bytes], draw: int
) -> dict[str, bytes]:
    sample = read_sample(key, members, config, seed=seed_of(config.seed, draw, key))
    if sample.frames_TCHW is None:
        raise SampleError("latent", "already contains latents")
    metadata = sample_metadata(members)
    metadata["conditioning"] = {**metadata["conditioning"], "motion_bucket": sample.motion_bucket}
    frames_TCHW = sample.frames_TCHW.to(model.autoencoder.quant_conv.weight.device)
    posterior = encode_frames(model.autoencoder, frames_TCHW[None])
    embeddings = None if model.image_encoder is None else model.image_encoder(signed(frames_TCHW[[0, -1]]))
    written = [i for i, caption in enumerate(metadata["captions"]) if caption.get("text")]
    tokens = {}
    if model.text_encoder is not None and written:
        texts = [metadata["captions"][i]["text"] for i in written]
        tokens = dict(zip(written, model.text_encoder(texts), strict=True))
    return latent_members(
        metadata,
        mean_TCHW=posterior.mean[0],
        logvar_TCHW=posterior.logvar[0],
        ends_ECHW=frames_TCHW[[0, -1]],
        fps=sample.fps,
        picture=sample.picture,
        embeddings_EC=embeddings,
        tokens=tokens,
        made_with={"height_px": frames_TCHW.shape[-2], "width_px": frames_TCHW.shape[-1], "models": digests},
    )


def weight_digests(model: Model) -> dict[str, str]:
    """16 hex digits that identify the weights of each network used to compute latents."""
    return {name: _digest(network) for name, network in model.networks().items() if name != "unet"}


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
