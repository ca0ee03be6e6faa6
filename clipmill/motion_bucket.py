"""SVD's micro-conditioning from one's own data: the motion bucket of a clip (`clipmill.video.fps_id` is the other).

The paper (section 4, App. D) conditions on frame rate and motion score; the released model takes a frame rate id and
a motion bucket from 0 to 255, 127 by default, and does not document how a bucket is computed. The reasons for this
definition are in docs/micro-conditioning.md.
"""

import math

MAX_BUCKET = 255
_UNIT = 1.0
"""%/s: below it the scale is nearly linear, above it logarithmic."""
_FASTEST = 120.0
"""%/s: from here on the bucket is 255. 10 %/s, an ordinary shot, comes to 127.5, the middle: (1 + 10)^2 = 1 + 120."""


def motion_bucket(motion: float | None) -> int | None:
    """Motion (%/s, as the column `motion`) on a fixed logarithmic scale: 0 is still, 127 is 10 %/s, 255 is 120 %/s.

    255 ln(1 + m) / ln(1 + 120), rounded down and held within 0 to 255. None without a motion score.
    """
    if motion is None or not math.isfinite(motion):
        return None
    share = math.log1p(max(0.0, motion) / _UNIT) / math.log1p(_FASTEST / _UNIT)
    return min(MAX_BUCKET, int(MAX_BUCKET * share))
