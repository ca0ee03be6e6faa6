"""Groups of near-duplicates: the kept clip that each clip joins.

Clips are processed from best to worst: each joins the best kept clip that it is similar to, or is kept. So every copy
is similar to its representative, and chains of small differences do not join dissimilar clips. What an earlier search
decided is not computed again: then only new clips, and those that are kept now and were not, are compared with all.
Sizes: N clips, B of them in a block, C cells, D = width of an embedding.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curation.dedup.config import DuplicatesConfig
from curation.dedup.kept import NONE, KeptIndex, KeptShare, LocalIndex, MakeIndex, train_centroids, wanted_cells
from curation.dedup.ranked import ClipBlock, RankedClips, may_join

_GROWTH = 1.5
"""Centroids are trained again once this many times more cells are wanted."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an earlier search decided."""

    keeper_N: NDArray[np.int64]
    """Of each clip that was compared and has not changed since, the number of the clip that it joined, itself if it was
    kept; -1: of the others, and where that clip has changed or is gone."""
    centroids_CD: NDArray[np.float32] | None = None
    """Of an approximate search."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The result of a search."""

    keeper_N: NDArray[np.int64]
    """The clip that is kept in place of each, itself if it is kept."""
    compared_with_all: int
    """Clips that were compared with all kept ones; the others were known."""
    centroids_CD: NDArray[np.float32] | None
    """None of an exact search."""


def find_groups(
    clips: RankedClips, config: DuplicatesConfig, *, make_index: MakeIndex = LocalIndex, known: Known | None = None
) -> Groups:
    """Decide for every clip. An exact search gives the same with `known` as without; an approximate one the same as
    from scratch with these centroids."""
    number_N = np.arange(len(clips.row_N))
    searched = number_N[clips.twin_N == number_N]
    centroids_CD = None
    if len(searched) > config.exact_up_to:
        if known is None or known.centroids_CD is None or _outgrown(known.centroids_CD, len(searched)):
            known, centroids_CD = None, train_centroids(clips, searched, config)
        else:
            centroids_CD = known.centroids_CD
    elif known is not None and known.centroids_CD is not None:
        known = None
    search = _Search(clips, config, make_index, known, centroids_CD)
    for start in range(0, len(searched), search.block_clips):
        search.decide(searched[start : start + search.block_clips])
    keeper_N = search.keeper_N
    # A twin of a kept clip is kept too, unless the two may join.
    twin_N = clips.twin_N
    source_N, duration_s_N = clips.source_N, clips.duration_s_N
    follows_N = may_join(source_N, source_N[twin_N], duration_s_N, duration_s_N[twin_N], config)
    follows_N |= keeper_N[twin_N] != twin_N
    keeper_N[follows_N] = keeper_N[twin_N[follows_N]]
    return Groups(keeper_N=keeper_N, compared_with_all=search.compared_with_all, centroids_CD=centroids_CD)


class _Search:
    """The state of a search: clips are decided in order, a block at a time."""

    def __init__(
        self,
        clips: RankedClips,
        config: DuplicatesConfig,
        make_index: MakeIndex,
        known: Known | None,
        centroids_CD: NDArray[np.float32] | None,
    ) -> None:
        self._clips, self._config, self._known = clips, config, known
        self._index: KeptIndex = make_index(clips, config, centroids_CD)
        self._promoted: KeptIndex | None = make_index(clips, config, centroids_CD) if known else None
        """Those kept clips that the earlier search did not keep."""
        self._is_kept = np.zeros(len(clips.row_N) + 1, np.bool_)  # the last one stands for number -1
        self.keeper_N = np.arange(len(clips.row_N))
        self.block_clips = max(self._index.block_clips, config.block_clips)
        self.compared_with_all = 0

    def decide(self, number_B: NDArray[np.int64]) -> None:
        """Decide for the next clips."""
        block = self._index.located(self._clips.block(number_B))
        best_B = self._best(block)
        joins_B = best_B != NONE
        self.keeper_N[number_B[joins_B]] = best_B[joins_B]
        rest = block.take(~joins_B)
        keeper_R = _joined_within(rest, self._clips.width, self._config)
        self.keeper_N[rest.number_B] = keeper_R
        kept = rest.take(keeper_R == rest.number_B)
        self._is_kept[kept.number_B] = True
        self._index.add(kept)
        if self._known and self._promoted:
            self._promoted.add(kept.take(self._known.keeper_N[kept.number_B] != kept.number_B))

    def _best(self, block: ClipBlock) -> NDArray[np.int64]:
        """(B,): the best clip kept before this block that each joins, or `NONE`."""
        if self._known is None or self._promoted is None:
            self.compared_with_all += len(block)
            return self._index.best(block)
        before_B = self._known.keeper_N[block.number_B]
        in_block_B = before_B >= block.number_B[0]
        # Of the clips that the earlier search kept, none is similar to a clip and better than the one that it joined.
        settled_B = in_block_B | self._is_kept[before_B]
        best_B = np.full(len(block), NONE)
        best_B[settled_B] = self._promoted.best(block.take(settled_B))
        joined_B = settled_B & ~in_block_B
        best_B[joined_B] = np.minimum(best_B[joined_B], before_B[joined_B])
        best_B[~settled_B] = self._index.best(block.take(~settled_B))
        self.compared_with_all += int((~settled_B).sum())
        return best_B


def _outgrown(centroids_CD: NDArray[np.float32], clips: int) -> bool:
    return wanted_cells(clips) > _GROWTH * len(centroids_CD)


def _joined_within(block: ClipBlock, width: int, config: DuplicatesConfig) -> NDArray[np.int64]:
    """(B,): number of the clip that each joins, of a block in which none joins an earlier one."""
    keeper_B = block.number_B.copy()
    plain = replace(block, cells_BS=None)
    kept, kept_rows = KeptShare(width, config), np.empty(0, np.int64)
    for start in range(0, len(block), config.block_clips):
        rows = np.arange(start, min(start + config.block_clips, len(block)))
        query_P, place_P = kept.pairs(plain.take(rows))
        reached_P = _reaches(block, rows[query_P], kept_rows[place_P])
        best = np.full(len(rows), NONE)
        np.minimum.at(best, query_P[reached_P], kept_rows[place_P[reached_P]])
        joins = best != NONE
        keeper_B[rows[joins]] = block.number_B[best[joins]]
        new_rows = _join_each_other(block, plain, rows[~joins], keeper_B, width, config)
        if rows[-1] + 1 < len(block):
            kept.add(plain.take(new_rows))
            kept_rows = np.concatenate([kept_rows, new_rows])
    return keeper_B


def _join_each_other(
    block: ClipBlock,
    plain: ClipBlock,
    rows: NDArray[np.int64],
    keeper_B: NDArray[np.int64],
    width: int,
    config: DuplicatesConfig,
) -> NDArray[np.int64]:
    """Join some rows of a block, none of which joins an earlier one, in `keeper_B`. Returns those that are kept."""
    share = KeptShare(width, config)
    share.add(plain.take(rows))
    later, earlier = share.pairs(plain.take(rows))
    before = earlier < later
    later, earlier = later[before], earlier[before]
    reached = _reaches(block, rows[later], rows[earlier])
    later, earlier = later[reached], earlier[reached]
    is_kept = np.full(len(rows), True)
    for i in np.lexsort((earlier, later)):
        if is_kept[later[i]] and is_kept[earlier[i]]:
            is_kept[later[i]] = False
            keeper_B[rows[later[i]]] = block.number_B[rows[earlier[i]]]
    return rows[is_kept]


def _reaches(block: ClipBlock, row_P: NDArray[np.int64], kept_P: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the search for a row would find a kept row in the index: the result does not depend on blocks."""
    if block.cells_BS is None:
        return np.full(len(row_P), True)
    reached_P: NDArray[np.bool_] = (block.cells_BS[row_P] == block.cells_BS[kept_P, :1]).any(1)
    return reached_P
