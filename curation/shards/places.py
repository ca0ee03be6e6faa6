"""clips.parquet of a shard folder: a row per sample with its caption, scores, and the bytes of its files in their tar.

With it a few clips are read out of terabytes by range, and no tar is opened to find them.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill import storage
from clipmill.addresses import without_credentials
from clipmill.columns import column
from clipmill.errors import UserError
from clipmill.shard_folder import ShardRecord

CATALOG = "clips.parquet"

_FILE = pa.struct([("extension", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
PLACE = pa.schema(
    [
        column("key", pa.string(), "name of the sample: the clip id; of several pictures of a clip also their number"),
        column("shard", pa.string(), "file name of the tar"),
        column("shard_bytes", pa.int64(), "size of the tar", unit="bytes"),
        column("extension", pa.string(), "extension of the video or picture"),
        column("offset", pa.int64(), "where the video or picture starts in the tar", unit="bytes"),
        column("size", pa.int64(), "its size", unit="bytes"),
        column("files", pa.list_(_FILE), "all files of the sample: extension, offset and size in the tar"),
        column("caption", pa.string(), "caption in the .txt; empty if the clip has none"),
    ]
)
"""The columns that locate a sample; those of the dataset's clip follow."""
_TEXT = ("txt", "json")


def write_catalog(folder_url: str, table: pa.Table) -> None:
    """Write clips.parquet atomically. Raises UserError if that fails."""
    fs, folder = storage.filesystem(folder_url)
    with storage.atomic_write(fs, f"{folder}/{CATALOG}") as file:
        pq.write_table(table, file, compression="zstd")


def has_catalog(folder_url: str) -> bool:
    """Whether the folder has a clips.parquet."""
    fs, folder = storage.filesystem(folder_url)
    return storage.exists(fs, f"{folder}/{CATALOG}")


def check_catalog(folder_url: str) -> None:
    """Raise UserError if the folder has no clips.parquet."""
    if not has_catalog(folder_url):
        raise UserError(
            f"{without_credentials(folder_url)} has no {CATALOG}: expected a folder that `clipmill shard` has "
            "finished; rerun it, and it writes what is missing"
        )


def files_of(record: ShardRecord, sample: int) -> dict[str, Any]:
    """`extension`, `offset`, `size` and `files`, see `PLACE`, of a sample by its number in the tar."""
    assert record.members is not None
    ranges = {extension: found[sample] for extension, found in record.members.ranges.items()}
    files = [(extension, *found) for extension, found in sorted(ranges.items()) if found is not None]
    video = next(file for file in files if file[0] not in _TEXT)
    names = ("extension", "offset", "size")
    return {**dict(zip(names, video, strict=True)), "files": [dict(zip(names, file, strict=True)) for file in files]}
