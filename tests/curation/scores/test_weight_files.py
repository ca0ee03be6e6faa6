"""Files of tensors are read for their tensors alone, and cost no more than their size."""

import copy
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clipmill.errors import UserError
from curation.scores.weight_files import check_shapes, read_tensors, shapes


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("false",)


def repacked(path: Path, compression: int, *, index: bytes | None = None) -> Path:
    """The same archive of torch, its members compressed otherwise, or with other content for its index."""
    target = path.with_name("repacked.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, index if index is not None and name.endswith("data.pkl") else old.read(name))
    return target


@pytest.mark.parametrize("wrapped", [False, True])
def test_tensors_of_a_torch_file_come_as_they_were_saved(tmp_path: Path, wrapped: bool):
    tensors = {"module.a": torch.arange(6.0).reshape(2, 3), "module.b": torch.ones(1)}
    torch.save({"state_dict": tensors} if wrapped else tensors, tmp_path / "weights.pt")
    found = read_tensors(tmp_path / "weights.pt")
    assert torch.equal(found["a"], tensors["module.a"])
    assert shapes(tmp_path / "weights.pt") == {"a": (2, 3), "b": (1,)}


def test_a_file_of_the_format_before_zip_archives_is_read_and_one_that_is_large_is_not(tmp_path: Path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert shapes(tmp_path / "old.pth") == {"a": (3,)}
    with (tmp_path / "old.pth").open("r+b") as file:
        file.truncate(9 << 20)
    with pytest.raises(UserError, match="neither safetensors nor a zip archive of torch, and has 9,437,184 bytes"):
        read_tensors(tmp_path / "old.pth")


def test_a_compressed_member_is_refused_before_it_unfolds(tmp_path: Path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "weights.pt")
    bomb = repacked(tmp_path / "weights.pt", zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(UserError, match="is compressed, which torch's files never are"):
        read_tensors(bomb)


def test_an_index_that_is_far_too_large_is_not_unpickled(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    bomb = repacked(tmp_path / "weights.pt", zipfile.ZIP_STORED, index=b"}" * (9 << 20))
    with pytest.raises(UserError, match=r"'weights/data\.pkl' has 9,437,184 bytes, expected at most 8,388,608"):
        read_tensors(bomb)


def test_a_pickle_with_a_directory_behind_it_is_no_archive(tmp_path: Path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with (tmp_path / "old.pth").open("ab") as file:
        file.truncate(9 << 20)
    with zipfile.ZipFile(tmp_path / "old.pth", "a") as archive:
        archive.writestr("a", b"")
    with pytest.raises(UserError, match="neither safetensors nor a zip archive of torch"):
        read_tensors(tmp_path / "old.pth")


def test_code_that_nobody_reads_is_not_unfolded_for_the_reason(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb, zipfile.ZipFile(tmp_path / "weights.pt") as whole:
        bomb.writestr("weights/code/x.pkl", bytes(200 << 20), zipfile.ZIP_DEFLATED)
        for name in whole.namelist():
            bomb.writestr(name, b"\x80\x02\xff." if name.endswith("data.pkl") else whole.read(name))
    tracemalloc.start()
    with pytest.raises(UserError, match="is not a readable weight file"):
        read_tensors(tmp_path / "bomb.pt")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50 << 20


def test_members_that_lie_over_one_another_are_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "weights.pt", "a") as archive:
        data = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
        for i in range(1, 4):  # entries of the directory alone, which all point to the same bytes
            again = copy.copy(data)
            again.filename = data.filename[:-1] + str(i)
            archive.filelist.append(again)
        archive.writestr("weights/more", b"")  # so that the directory is written anew
    with pytest.raises(UserError, match="its members are larger together than the file"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.zeros(3).to_sparse(),
        lambda: torch.zeros(10**6, device="meta"),
    ],
    ids=["stride 0", "sparse", "meta"],
)
def test_a_tensor_that_claims_more_than_it_holds_is_refused(tmp_path: Path, make: Callable[[], torch.Tensor]):
    torch.save({"weight": make()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="tensor weight is larger than its data"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("length", [1 << 62, 1 << 30, 90 << 20])
def test_a_header_that_claims_to_be_long_is_not_read(tmp_path: Path, length: int):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    for read in (read_tensors, shapes):
        with pytest.raises(UserError, match="not a readable weight file: its header claims"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html><p>404</p>", b"", b"PK\x03\x04 cut short"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_download_is_not_called_malicious(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    for read in (read_tensors, shapes):
        with pytest.raises(UserError, match="not a readable weight file"):
            read(path)


def test_code_is_refused_wherever_it_is(tmp_path: Path):
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"a": _Code()}))
    torch.save({"a": _Code()}, tmp_path / "zip.bin")
    for name in ("raw.bin", "zip.bin"):
        with pytest.raises(UserError, match="it is a pickle that runs code"):
            read_tensors(tmp_path / name)


def test_tensors_without_names_are_refused(tmp_path: Path):
    torch.save({1: torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="contains no named tensors"):
        read_tensors(tmp_path / "weights.pt")


def test_a_network_is_compared_with_the_file_by_shapes_and_by_size(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2, 3)}, path)
    meta = {"device": "meta"}
    check_shapes({"a": torch.zeros(2, 3, **meta)}, path, "tiny")
    with pytest.raises(
        UserError, match=r"does not match the architecture of tiny: its tensor a has shape \(2, 3\), expected"
    ):
        check_shapes({"a": torch.zeros(3, 2, **meta)}, path, "tiny")
    with pytest.raises(UserError, match="that has 1,000,000,000,006 weights, the file"):
        check_shapes({"a": torch.zeros(2, 3, **meta), "b": torch.zeros(10**12, **meta)}, path, "tiny")
