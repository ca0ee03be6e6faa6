"""What one rule of a selection removed: a row of its funnel."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class FunnelStep:
    """Effect of one rule. `removed_alone` and `unscored` refer to all clips, the rest to clips that passed earlier
    rules."""

    rule: str
    """The column, or "where"."""
    asked: str
    thresholds: dict[str, float | None] = field(default_factory=dict)
    """Each bound as a number; None where no clip has the score."""
    removed_alone: int = 0
    removed: int = 0
    unscored: int = 0
    unscored_dropped: int = 0
    unscored_reason: str | None = None
    """Most common reason for missing scores, from the error column."""
    clips_left: int
    seconds_left: float
    note: str | None = None
    """Remarks on the numbers: ties at a threshold, or a rule that runs last."""
    skipped: str | None = None
    """Why the rule was skipped, if it was."""
