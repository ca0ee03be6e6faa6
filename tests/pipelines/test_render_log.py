"""`clipmill log`: versions as a person reads them."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from curation.dataset.commits import Change, read_commits, recorded
from curation.dataset.tables import Dataset
from curation.dedup.duplicates import find_duplicates
from pipelines.render_log import print_log, table_label
from tests.curation.dedup.test_duplicates import at, clip, write


@pytest.mark.parametrize(
    ("table", "label"),
    [
        ("clips", "clips"),
        ("scores/aesthetic/v2", "aesthetic@2"),
        ("scores/duplicates", "duplicates"),
        ("captions/video/v1", "captions video@1"),
        ("scores/v2", "v2"),
    ],
)
def test_tables_are_named_as_in_rules(table: str, label: str) -> None:
    assert table_label(table) == label


def test_a_version_says_by_which_command_and_release(tmp_path: Path) -> None:
    """Without what a search keeps for the next one."""
    dataset = Dataset(str(tmp_path / "d")).create_or_open({})
    with recorded(dataset, Change(command="duplicates", what="against /old")):
        write(dataset, "p0", [clip(0, at(0)), clip(1, at(1))])
        find_duplicates(dataset)
    assert Path(dataset.file("scores/duplicates/last/clips.parquet")).exists()
    (commit,) = read_commits(dataset)
    assert commit.changes == {"clips": 2, "scores/duplicates": 2, "sources": 2}
    console = Console(file=io.StringIO(), width=200)
    print_log(console, dataset.url, [commit])
    assert isinstance(console.file, io.StringIO)
    printed = " ".join(console.file.getvalue().split())
    assert f"duplicates against /old {commit.clipmill} 2 2 clips +2, duplicates +2, sources +2" in printed
