"""Limits per group and balance between groups: they run last, on what the other rules left."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.difference import difference
from curation.selection.groups import quotas
from curation.selection.marks import Mark, Marks
from curation.selection.rules import Rules
from curation.selection.saved import load_selection
from curation.selection.select import select_clips
from tests.curation.selection.datasets import check_reconciled, chosen, make, select

SIZES = st.lists(st.integers(0, 500), max_size=30)


def asked(**rules: Any) -> Rules:
    return Rules.from_values({"name": "test", **rules}, origin="test")


def clustered(path: Path, clusters: Sequence[int | None], **columns: Sequence[Any]) -> Dataset:
    """A clip per entry, with its cluster in a table of its own; None has no row there."""
    clips = [{name: values[i] for name, values in columns.items()} for i in range(len(clusters))]
    dataset = make(str(path / "d"), clips)
    ids = [(f"s{i % 3}-{i:04d}-0", cluster) for i, cluster in enumerate(clusters) if cluster is not None]
    columns_of = {"clip_id": pa.array([i for i, _ in ids], pa.string())}
    columns_of["cluster"] = pa.array([cluster for _, cluster in ids], pa.int32())
    dataset.write_part("scores/cluster", "any", pa.table(columns_of))
    return dataset


def per_cluster(dataset: Dataset, clusters: Sequence[int | None]) -> dict[int | None, int]:
    return dict(Counter(clusters[int(clip_id.split("-")[1])] for clip_id in chosen(dataset)))


@given(SIZES, st.integers(1, 4000), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_quotas_add_up_and_never_exceed_a_group(sizes: list[int], clips: int, power: float):
    array = np.array(sizes, np.int64)
    found = quotas(array, clips, power)
    assert found.sum() == min(clips, array.sum())
    assert (found >= 0).all()
    assert (found <= array).all()
    order = np.argsort(array, kind="stable")
    assert (np.diff(found[order])[np.diff(array[order]) > 0] >= 0).all(), "a larger group gave less than a smaller one"
    assert all(np.ptp(found[array == size]) <= 1 for size in set(sizes)), "groups of one size differ by more than one"


@given(SIZES, st.integers(1, 4000), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_quotas_follow_the_formula(sizes: list[int], clips: int, power: float):
    """c * n ** power for every group that does not give all, and all of it would be no more for the others."""
    array = np.array(sizes, np.int64)
    found = quotas(array, clips, power)
    part = (found < array) & (array > 0)
    if not part.any():
        return
    scales = found[part] / array[part].astype(float) ** power
    slack = 1 / array[part].astype(float) ** power
    low, high = (scales - slack).max(), (scales + slack).min()
    assert low <= high + 1e-9  # one c explains all of them, up to a clip each
    whole = (found == array) & (array > 0)
    assert (array[whole] <= (high + 1e-9) * array[whole].astype(float) ** power + 1).all()


@given(st.permutations(range(12)), st.integers(1, 200))
def test_quotas_do_not_depend_on_the_order_of_groups_of_different_sizes(order: list[int], clips: int):
    sizes = np.array([1, 2, 4, 7, 11, 16, 23, 31, 40, 50, 61, 73], np.int64)
    assert quotas(sizes[order], clips, 0.5).tolist() == quotas(sizes, clips, 0.5)[order].tolist()


def test_quotas_by_hand():
    assert quotas(np.array([100, 25, 4]), 17, 0.5).tolist() == [10, 5, 2]
    assert quotas(np.array([100, 25, 4]), 12, 0.0).tolist() == [4, 4, 4]
    assert quotas(np.array([100, 25, 4]), 30, 0.0).tolist() == [13, 13, 4]
    assert quotas(np.array([60, 30, 10]), 10, 1.0).tolist() == [6, 3, 1]
    assert quotas(np.array([3, 3]), 99, 0.5).tolist() == [3, 3]
    assert quotas(np.array([], np.int64), 5, 0.5).tolist() == []


def test_balance_takes_the_square_root_of_each_cluster(tmp_path: Path):
    clusters = [0] * 64 + [1] * 16 + [2] * 4
    dataset = clustered(tmp_path, clusters)
    selection = select(dataset, asked(balance={"by": "cluster", "clips": 14}))
    assert per_cluster(dataset, clusters) == {0: 8, 1: 4, 2: 2}
    (step,) = selection.funnel
    assert (step.rule, step.removed, step.removed_alone, step.clips_left) == ("balance", 70, 70, 14)
    assert step.note == "among the clips that pass the other rules; 3 groups of 4 to 64 clips give 2 to 8; 0 give all"
    assert step.asked == "14 clips, by cluster to the power 0.5, random order, seed 0"
    check_reconciled(selection)


def test_balance_counts_what_the_other_rules_left(tmp_path: Path):
    clusters = [0] * 64 + [1] * 64
    dataset = clustered(tmp_path, clusters, motion=[float(i) for i in range(128)])
    selection = select(dataset, asked(rules={"motion": {"min": 48}}, balance={"by": "cluster", "clips": 12}))
    assert per_cluster(dataset, clusters) == {0: 4, 1: 8}  # of 16 and 64
    assert [step.rule for step in selection.funnel] == ["motion", "balance"]
    assert (selection.funnel[1].removed, selection.funnel[1].removed_alone) == (68, 116)
    check_reconciled(selection)


def test_seeds_choose_and_nothing_else_does(tmp_path: Path):
    clusters = [i % 5 for i in range(100)]
    dataset = clustered(tmp_path, clusters)
    balance = {"by": "cluster", "clips": 20}
    select(dataset, asked(balance=balance))
    first = chosen(dataset)
    select(dataset, asked(balance=balance))
    assert chosen(dataset) == first
    other = clustered(tmp_path / "other", clusters)
    for part in ("p0", "p1"):
        table = other.read_part("clips", part)
        other.write_part("clips", part, table.take(pa.array(range(table.num_rows - 1, -1, -1))))
    select(other, asked(balance=balance))
    assert chosen(other) == first
    select(dataset, asked(balance=balance | {"seed": 1}))
    assert chosen(dataset) != first
    assert per_cluster(dataset, clusters) == dict.fromkeys(range(5), 4)


def test_a_random_order_has_no_favourites(tmp_path: Path):
    dataset = clustered(tmp_path, [0] * 40)
    counts: Counter[str] = Counter()
    for seed in range(60):
        select(dataset, asked(balance={"by": "cluster", "clips": 10, "seed": seed}))
        counts.update(chosen(dataset))
    assert len(counts) == 40
    assert min(counts.values()) >= 2  # 15 expected, 4 standard deviations
    assert max(counts.values()) <= 28


def test_more_clips_than_there_are_changes_nothing(tmp_path: Path):
    dataset = clustered(tmp_path, [0, 0, 1])
    selection = select(dataset, asked(balance={"by": "cluster", "clips": 1000, "power": 0}))
    assert (selection.clips, selection.funnel[0].removed) == (3, 0)


def test_clips_without_a_cluster_are_unscored(tmp_path: Path):
    clusters = [0, 0, None, 1, 1, None]
    dataset = clustered(tmp_path, clusters)
    selection = select(dataset, asked(balance={"by": "cluster", "clips": 2}))
    assert (selection.funnel[0].unscored, selection.funnel[0].unscored_dropped) == (2, 2)
    assert per_cluster(dataset, clusters) == {0: 1, 1: 1}
    kept = select(dataset, asked(balance={"by": "cluster", "clips": 2, "unscored": "keep"}))
    assert (kept.clips, kept.funnel[0].unscored_dropped) == (4, 0)
    check_reconciled(kept)


def test_no_clip_has_a_cluster(tmp_path: Path):
    selection = select(clustered(tmp_path, [None, None]), asked(balance={"by": "cluster", "clips": 2}))
    assert selection.empty
    assert selection.starved


def test_at_most_so_many_clips_per_source(tmp_path: Path):
    dataset = make(str(tmp_path / "d"), [{"motion": float(i)} for i in range(31)])  # 11, 10 and 10 of three sources
    selection = select(dataset, asked(rules={"motion": {"min": 1}}, max_per={"source": 4}))
    assert Counter(clip_id[:2] for clip_id in chosen(dataset)) == {"s0": 4, "s1": 4, "s2": 4}
    assert [(step.rule, step.removed, step.removed_alone) for step in selection.funnel] == [
        ("motion", 1, 1),
        ("max_per source", 18, 19),
    ]
    assert selection.funnel[1].asked == "at most 4 per source_id, random order, seed 0"
    check_reconciled(selection)


def test_the_best_are_kept_and_ties_are_seeded(tmp_path: Path):
    aesthetics: list[float | None] = [1.0, None, 9.0, float("nan"), 9.0, 9.0, float("inf"), 2.0, 3.0]
    dataset = clustered(tmp_path, [0] * 9, aesthetic=aesthetics, motion=[float(i) for i in range(9)])
    best = {"best": {"aesthetic": "highest", "motion": "lowest"}}
    select(dataset, asked(max_per={"cluster": {"clips": 2, **best}}))
    assert set(chosen(dataset)) == {"s2-0002-0", "s1-0004-0"}
    select(dataset, asked(max_per={"cluster": {"clips": 2, "best": {"aesthetic": "lowest"}}}))
    assert set(chosen(dataset)) == {"s0-0000-0", "s1-0007-0"}
    found = set()
    for seed in range(20):
        select(dataset, asked(max_per={"cluster": {"clips": 1, "best": {"aesthetic": "highest"}, "seed": seed}}))
        found |= set(chosen(dataset))
    assert found == {"s2-0002-0", "s1-0004-0", "s2-0005-0"}  # the three that share the highest score
    select(dataset, asked(max_per={"cluster": {"clips": 7, "best": {"aesthetic": "highest"}}}))
    assert len(chosen(dataset)) == 7  # without a score they come last, but they come


def test_duplicates_then_limits_then_balance(tmp_path: Path):
    clusters = [0] * 8 + [1] * 4
    dataset = clustered(tmp_path, clusters)
    ranks = {
        "clip_id": [f"s{i % 3}-{i:04d}-0" for i in range(12)],
        "duplicate_rank": pa.array([0, 1, *[0] * 10], pa.int32()),
        "duplicate_of": [None, "s0-0000-0", *[None] * 10],
    }
    dataset.write_part("scores/duplicates", "duplicates", pa.table(ranks))
    selection = select(
        dataset,
        asked(
            balance={"by": "cluster", "clips": 4, "power": 0},
            max_per={"source": 3, "cluster": 6},
            rules={"duplicate_rank": {"max": 0}},
        ),
    )
    assert [step.rule for step in selection.funnel] == [
        "duplicate_rank",
        "max_per source",
        "max_per cluster",
        "balance",
    ]
    assert selection.funnel[0].removed == 1
    assert per_cluster(dataset, clusters) == {0: 2, 1: 2}
    check_reconciled(selection)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3) | st.none(), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 2),
)
def test_what_is_left_is_what_a_plain_loop_leaves(
    tmp_path_factory: pytest.TempPathFactory,
    clips: list[tuple[int | None, int]],
    limit: int,
    target: int,
    seed: int,
):
    clusters, motion = [c for c, _ in clips], [float(m) for _, m in clips]
    dataset = clustered(tmp_path_factory.mktemp("d"), clusters, motion=motion)
    selection = select(
        dataset,
        asked(
            rules={"motion": {"min": 3}},
            max_per={"source": {"clips": limit, "best": {"motion": "highest"}, "seed": seed}},
            balance={"by": "cluster", "clips": target, "seed": seed},
        ),
    )
    check_reconciled(selection)
    left = [i for i, value in enumerate(motion) if value >= 3]
    by_source = {
        source: sorted((motion[i] for i in left if i % 3 == source), reverse=True)[:limit] for source in range(3)
    }
    assert selection.funnel[1].clips_left == sum(map(len, by_source.values()))
    found = [int(clip_id.split("-")[1]) for clip_id in chosen(dataset)]
    assert set(found) <= set(left)
    assert all(clusters[i] is not None for i in found)
    scored = selection.funnel[1].clips_left - selection.funnel[2].unscored_dropped
    assert len(found) == min(target, scored)
    assert max(Counter(i % 3 for i in found).values(), default=0) <= limit


def test_marked_clips_pass_every_rule(tmp_path: Path):
    dataset = clustered(tmp_path, [0] * 10)
    select(dataset, asked(balance={"by": "cluster", "clips": 3}))
    outside = next(i for i in (f"s{k % 3}-{k:04d}-0" for k in range(10)) if i not in chosen(dataset))
    marks = Marks(marks=(Mark(clip_id=outside, verdict="keep"),))
    selection = select(dataset, asked(balance={"by": "cluster", "clips": 3}), marks=marks)
    assert outside in chosen(dataset)
    assert selection.clips == 4
    check_reconciled(selection)


def test_a_selection_records_its_limits_and_gives_the_same_clips_again(tmp_path: Path):
    dataset = clustered(tmp_path, [i % 4 for i in range(40)])
    rules = asked(max_per={"source": 9}, balance={"by": "cluster", "clips": 10, "power": 0.25})
    select(dataset, rules)
    selection = load_selection(dataset, "test")
    assert selection.resolved == {
        "name": "test",
        "rules": {},
        "max_per": {"source": {"clips": 9}},
        "balance": {"by": "cluster", "clips": 10, "power": 0.25},
    }
    again = select_clips(dataset, Rules.from_values(selection.resolved, origin="again").named("again"))
    assert again.clips_sha256 == selection.clips_sha256


def test_the_difference_names_the_limit_that_decides(tmp_path: Path):
    dataset = clustered(tmp_path, [i % 4 for i in range(40)])
    select(dataset, asked(balance={"by": "cluster", "clips": 8}).named("old"))
    found = difference(dataset, asked(max_per={"cluster": 3}), "old")
    assert [(change.rule, change.clips) for change in found.coming] == [("balance", 4)]
    assert found.both == 8  # the same order within a cluster: the first two of each are among the first three
    assert found.going == ()
    grown = difference(dataset, asked(balance={"by": "cluster", "clips": 4}), "old")
    assert [(change.rule, change.clips) for change in grown.going] == [("balance", 4)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"balance": {"by": "clusters", "clips": 3}}, "Did you mean 'cluster'"),
        ({"balance": {"by": "motion", "clips": 3}}, "expected a column of text, whole numbers or booleans, 'motion'"),
        ({"balance": {"by": "cluster"}}, "balance.clips"),
        ({"balance": {"by": "cluster", "clips": 0}}, "greater than or equal to 1"),
        ({"balance": {"by": "cluster", "clips": 3, "power": 2}}, "less than or equal to 1"),
        (
            {"balance": {"by": "cluster", "clips": 3, "best": {"uri": "highest"}}},
            "requires numeric columns, 'uri'",
        ),
        ({"balance": {"by": "cluster", "clips": 3, "best": {"motion": "higher"}}}, "'highest' or 'lowest'"),
        ({"max_per": {"source": 0}}, "greater than or equal to 1"),
        ({"max_per": {"source": True}}, "max_per.source"),
        ({"max_per": {"sorce": 3}}, "unknown column 'sorce'"),
        ({"max_per": 3}, "max_per"),
    ],
)
def test_mistakes_are_user_errors(tmp_path: Path, rules: dict[str, Any], message: str):
    dataset = clustered(tmp_path, [0, 1])
    with pytest.raises(UserError, match=message):
        select(dataset, asked(**rules))


def test_a_dataset_without_clusters_says_what_to_do(tmp_path: Path):
    dataset = make(str(tmp_path / "d"), [{}] * 3)
    rules = asked(balance={"by": "cluster", "clips": 2})
    with pytest.raises(UserError, match="unknown column 'cluster' in this dataset: run `clipmill cluster DATASET`"):
        select(dataset, rules)
    selection = select(dataset, rules, allow_missing=True)
    assert selection.clips == 3
    assert selection.funnel[0].skipped == "unknown column 'cluster'"
    assert selection.resolved == {"name": "test", "rules": {}}
