"""The index of a checkpoint is read as DCP wrote it, and nothing in it runs or leads out of the folder."""

import pickle
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from training.checkpoint_index import IndexReader, read_index
from training.distributed import Process


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.fixture
def folder(tmp_path: Path, process: Process) -> Path:
    dcp.save({"weights": {"a": torch.arange(6.0)}, "moments": {"a": torch.ones(2, 3, dtype=torch.bfloat16)}},
             checkpoint_id=tmp_path / "step")  # fmt: skip
    return tmp_path / "step"


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(change(index) or index))


def test_tensors_come_back_as_they_were_saved(folder: Path) -> None:
    tensors = {"weights": {"a": torch.zeros(6)}, "moments": {"a": torch.zeros(2, 3, dtype=torch.bfloat16)}}
    dcp.load(tensors, storage_reader=IndexReader(folder))
    assert torch.equal(tensors["weights"]["a"], torch.arange(6.0))
    assert tensors["moments"]["a"].eq(1).all()
    assert {name: tuple(entry.size) for name, entry in read_index(folder).state_dict_metadata.items()} == {
        "weights.a": (6,),
        "moments.a": (2, 3),
    }


@pytest.mark.parametrize("where", ["whole", "planner_data", "entry"])
def test_code_in_an_index_does_not_run(folder: Path, tmp_path: Path, where: str) -> None:
    def change(index: Metadata) -> Any:
        code = _Code(tmp_path / "ran")
        if where == "whole":
            return code
        if where == "planner_data":
            index.planner_data = code
        else:
            index.state_dict_metadata["weights.a"] = code  # type: ignore[assignment]
        return index

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"unexpected class .*"):
        IndexReader(folder).read_metadata()
    assert not (tmp_path / "ran").exists()


class _EarlyPython311(pickle.Pickler):
    """Pickles members of enumerations as 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_an_index_of_early_releases_of_python_3_11_is_read(folder: Path) -> None:
    written, raw = read_index(folder), pickle.loads((folder / ".metadata").read_bytes())
    with (folder / ".metadata").open("wb") as file:
        _EarlyPython311(file).dump(raw)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert read_index(folder).state_dict_metadata == written.state_dict_metadata


@pytest.mark.parametrize("kind", [torch.Size, Metadata])
def test_attributes_of_other_things_are_refused(folder: Path, kind: type) -> None:
    class Attribute:
        def __reduce__(self) -> Any:
            return getattr, (kind, "__init__")

    (folder / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(ValueError, match="unexpected attribute '__init__' of"):
        read_index(folder)


def test_an_entry_that_would_be_unpickled_is_refused(folder: Path) -> None:
    def change(index: Metadata) -> None:
        entry = BytesStorageMetadata()
        entry.size = torch.Size([6])  # type: ignore[attr-defined]
        index.state_dict_metadata["weights.a"] = entry

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"unexpected class .*BytesStorageMetadata"):
        read_index(folder)


@pytest.mark.parametrize("name", ["../__0_0.distcp", "/etc/passwd", "__0_0.distcp/../x", 7])
def test_data_outside_the_folder_is_refused(folder: Path, name: Any) -> None:
    def change(index: Metadata) -> None:
        for info in index.storage_data.values():
            info.relative_path = name

    rewrite(folder, change)
    with pytest.raises(ValueError, match="which is not a checkpoint file"):
        read_index(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: {"a": 1},
        lambda index: Metadata(state_dict_metadata=[]),  # type: ignore[arg-type]
        lambda index: Metadata(state_dict_metadata={}, storage_data=None),
        lambda index: Metadata(state_dict_metadata={3: None}, storage_data={}),  # type: ignore[dict-item]
        lambda index: Metadata(state_dict_metadata={}, storage_data={"a": "b"}),
    ],
)
def test_an_index_of_another_shape_is_a_sentence(folder: Path, change: Callable[[Any], Any]) -> None:
    rewrite(folder, change)
    with pytest.raises(ValueError, match="not a clipmill checkpoint index"):
        read_index(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"<html>", b"\x80\x04N.", b"\x80\x04" + b"(" * 1000])
def test_a_damaged_index_is_a_sentence(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata"):
        read_index(folder)
