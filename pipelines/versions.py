"""Which version of a score a run writes: one made with the same settings and weights, or the next."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation.dataset.score_names import check_names
from curation.dataset.score_versions import RecordedVersion, ScoreVersion, scores_of_clips
from curation.dataset.tables import Dataset
from curation.scores.base import Scorer, needs_clip
from curation.scores.columns import SCORES
from curation.scores.registry import ScorerSpec
from pipelines.models import CheckedModels
from pipelines.status import models_of


def version_of_run(
    dataset: Dataset,
    spec: ScorerSpec,
    scorer: Scorer,
    models: CheckedModels,
    captions: Mapping[str, int],
    *,
    without_clips: bool = False,
) -> tuple[RecordedVersion, tuple[str, ...]]:
    """The version that a run with this scorer writes and, if it is new, how it differs from the one before.

    `captions`: captioner -> version, for a scorer that needs captions. `without_clips`: the columns of the clips table
    are out of date. A new version is not recorded yet. Version 1 of a built-in score may be the clips table: see
    `in_clips`.
    """
    made_with = _made_with(scorer, spec.values(), models.digests, captions)
    of_clips = _version_of_clips(dataset, scorer)
    known = [*([of_clips] if of_clips else []), *dataset.begun_versions(scorer.root)]
    for each in known:
        if each.made_with == made_with and not (each is of_clips and without_clips):
            return each, ()
    version = RecordedVersion(
        version=max((each.version for each in known), default=0) + 1,
        made_with=made_with,
        target=spec.plugin.target,
        source_sha256=source_digest(spec),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not known:
        return version, ()
    return version, tuple(known[-1].made_with.differences(made_with)) or ("captions: added since then",)


def source_digest(spec: ScorerSpec) -> str | None:
    """SHA-256 of the source file of a scorer given by path; None for an installed one."""
    source = spec.plugin.source
    return hashlib.sha256(source).hexdigest() if source is not None else None


def in_clips(dataset: Dataset, scorer: Scorer, version: int) -> bool:
    """Whether the rows of a version are columns of the clips table."""
    return version == 1 and scorer.folder == SCORES and scorer.name in scores_of_clips(dataset.description())


def record_version(dataset: Dataset, root: str, version: RecordedVersion, *, finished: bool = False) -> None:
    """Add a version to the record, or mark it as finished. Call it only when this run owns the dataset."""
    recorded = dataset.recorded_versions(root)
    version = replace(version, finished=version.finished or finished)
    if version not in recorded:
        others = [each for each in recorded if each.version != version.version]
        dataset.record_versions(root, [*others, version])


def digest_of(scorer: Scorer, models: CheckedModels) -> str | None:
    """Digest of the scorer's weights; of CLIP's if it has none of its own and needs embeddings."""
    of_clip = models.digests.get("clip") if needs_clip(scorer.needs) else None
    return models.digests.get(scorer.name, of_clip)


def check_all_names(dataset: Dataset, scorers: Sequence[Scorer]) -> None:
    """Raise UserError if a scorer or captioner takes a name of the dataset, of another score, or of one of the
    others."""
    for scorer in scorers:
        others = {other.root: other.columns for other in scorers if other is not scorer}
        check_names(dataset, scorer.root, scorer.columns, others)


def _version_of_clips(dataset: Dataset, scorer: Scorer) -> RecordedVersion | None:
    if not dataset.exists() or not in_clips(dataset, scorer, 1):
        return None
    settings, models = dataset.description()["config"].get(scorer.name) or {}, models_of(dataset)
    versions = models.get("scorers") or {}
    made_with = _made_with(scorer, settings, models.get("digests") or {}, models.get("captions") or {})
    made_with = replace(made_with, scorer_version=versions.get(scorer.name, 1))
    return RecordedVersion(version=1, made_with=made_with, target="", finished=True)


def _made_with(
    scorer: Scorer, settings: Mapping[str, Any], digests: Mapping[str, str], captions: Mapping[str, int]
) -> ScoreVersion:
    weights = {scorer.name, *(["clip"] if needs_clip(scorer.needs) else [])}
    return ScoreVersion(
        scorer_version=scorer.version,
        settings={name: _named(value) for name, value in settings.items() if name not in scorer.may_change},
        weights={name: digest for name, digest in digests.items() if name in weights},
        columns={field.name: str(field.type) for field in scorer.columns},
        captions=dict(captions) if "captions" in scorer.needs else {},
    )


def _named(value: Any) -> Any:
    """The name of a file without its folder: weights may have moved, and their digest identifies them."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) and os.path.exists(value) else value
