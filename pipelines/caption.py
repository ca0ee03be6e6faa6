"""`clipmill caption`: caption clips of a dataset, with the machinery of `clipmill score`.

Captioning is the expensive step: given a selection, only its clips are captioned.
"""

from dataclasses import dataclass

from curation.dataset.caption_counts import spent_on
from curation.dataset.tables import Dataset
from pipelines.config import CurateConfig
from pipelines.model_specs import model_of_captioner
from pipelines.score import ScoreResult, add_scores


@dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """What a run did, or would do. clips = captioned_before + captioned_now + failed_now, of the selection or the
    dataset."""

    dataset: str
    captioner: str
    version: int
    clips: int
    captioned_before: int
    captioned_now: int
    failed_now: int
    """Clips whose caption failed; each has its error."""
    reason: str | None
    """The commonest of the errors of this version; None if no caption failed now."""
    dataset_clips: int
    uncovered: int
    """Clips of the dataset without a row in this version."""
    tokens: int
    """Of all captions of this version, failed ones included."""
    price: float | None
    """Of these, in the currency of the settings; None without prices."""
    changes: tuple[str, ...] = ()
    """How a new version differs from the one before."""
    wall_s: float


def caption(
    dataset: str,
    captioner: str,
    *,
    selection: str | None = None,
    config: CurateConfig | None = None,
    retry_failed: bool = False,
    take_over: bool = False,
    dry_run: bool = False,
    address: str | None = None,
    num_cpus: int | None = None,
    quiet: bool = False,
) -> CaptionResult:
    """Caption the clips of a dataset, or of a selection, that this version of the captioner lacks.

    `captioner` is a name, or an address: `module:Class`, `path/file.py:Class`. Its settings are those under
    `captioners` in `config`. Other settings or weights than before make a new version in `captions/NAME/`.
    `retry_failed` retries failed captions. `dry_run` writes nothing and captions nothing. Raises UserError: an unknown
    captioner or selection, names that are taken, missing weights, a dataset in use; RunStopped.
    """
    config = config or CurateConfig()
    asked = model_of_captioner(captioner, config)
    result = add_scores(
        dataset,
        asked,
        selection=selection,
        config=config,
        retry_failed=retry_failed,
        take_over=take_over,
        dry_run=dry_run,
        address=address,
        num_cpus=num_cpus,
        quiet=quiet,
    )
    return _result(result)


def _result(result: ScoreResult) -> CaptionResult:
    with Dataset(result.dataset).connect() as connection:
        tokens, price = spent_on(connection, result.scorer, result.version)
    return CaptionResult(
        dataset=result.dataset,
        captioner=result.scorer,
        version=result.version,
        clips=result.clips,
        captioned_before=result.scored_before,
        captioned_now=result.scored_now,
        failed_now=result.failed_now,
        reason=result.reason,
        dataset_clips=result.dataset_clips,
        uncovered=result.uncovered,
        tokens=tokens,
        price=price,
        changes=result.changes,
        wall_s=result.wall_s,
    )
