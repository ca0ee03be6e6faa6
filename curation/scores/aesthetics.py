"""Aesthetics: LAION's linear head on CLIP embeddings, the mean of three frames (paper 3.1 and App. C)."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from pydantic import field_validator

from clipmill.config import Config
from clipmill.errors import UserError
from clipmill.pipeline import Resources
from curation.scores.base import ClipView, Scorer
from curation.scores.columns import AESTHETIC_COLUMNS
from curation.scores.weight_fetch import WeightsMissing, check_answers
from curation.scores.weight_files import read_tensors

_LAION = {"large": "sa_0_4_vit_l_14_linear.pth", "small": "sa_0_4_vit_b_32_linear.pth"}
"""Of the package aesthetic-predictor: large for OpenAI's ViT-L-14, small for its ViT-B-32."""


class AestheticConfig(Config):
    """Head that scores the embeddings."""

    head: str = "large"
    """LAION's head `large` (for ViT-L-14) or `small` (for ViT-B-32), or a file with tensors weight (1, D), bias (1)."""

    @field_validator("head")
    @classmethod
    def _absolute(cls, head: str) -> str:
        """Workers run elsewhere than where the configuration was written."""
        return os.path.abspath(head) if os.path.exists(head) else head


class Aesthetic(Scorer):
    """Scorer `aesthetic`: a linear head on the L2-normalised embeddings of the frames, on the head's own scale."""

    name = "aesthetic"
    Config = AestheticConfig
    columns = AESTHETIC_COLUMNS
    needs = ("embeddings",)
    resources = Resources(num_cpus=0)

    def __init__(self, config: AestheticConfig | None = None) -> None:
        super().__init__(config)
        self._weight_D: Any = None
        self._bias = 0.0

    def __repr__(self) -> str:
        return f"aesthetic head {self.config.head!r}"

    def load(self, device: str = "cpu") -> None:
        """Load the head; it is a single row, and runs on the CPU. Raises UserError where it is missing or unfit."""
        head = self.config.head
        tensors = _laion_head(head) if head in _LAION else _own_head(head)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        width = shapes.get("weight", (0,))[-1:]
        if shapes != {"weight": (1, *width), "bias": (1,)}:
            raise UserError(
                f"{head} is not an aesthetic head: expected tensors weight (1, D) and bias (1,), got {shapes}"
            )
        self._weight_D, self._bias = tensors["weight"][0].float().numpy(), float(tensors["bias"][0])
        if not np.isfinite([*self._weight_D, self._bias]).all():
            raise UserError(f"the aesthetic head {head} contains non-finite values")
        self.embedding_width = len(self._weight_D)
        self.weights_digest = hashlib.sha256(np.array([*self._weight_D, self._bias], np.float32).tobytes()).hexdigest()[
            :16
        ]

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Columns aesthetic, aesthetic_error per clip."""
        return [self._score_clip(clip) for clip in batch]

    def _score_clip(self, clip: ClipView) -> dict[str, Any]:
        embeddings = clip.embeddings
        if embeddings is None or embeddings.frames_FD is None:
            reason = embeddings.error if embeddings else "the CLIP model did not run"
            return {"aesthetic": None, "aesthetic_error": f"no embedding: {reason}"}
        score = float((embeddings.frames_FD @ self._weight_D).mean()) + self._bias
        return {"aesthetic": score, "aesthetic_error": None}


def _laion_head(size: str) -> dict[str, Any]:
    """Through aesthetic-predictor, which keeps its heads in a folder of its own and fetches what is not there."""
    try:
        path = Path.home() / ".cache" / "aesthetic_predictor" / _LAION[size]
    except RuntimeError as error:  # a user id without an entry in the password database, as in some containers
        raise UserError(
            f"the aesthetic head {size!r} is kept in the home folder, and this user has none: set HOME, or set "
            "`aesthetic: {head: FILE}` in the --config file, or skip the score: --without aesthetic"
        ) from error
    if path.exists():
        read_tensors(path)  # refuses what is damaged or holds code, before the package opens it
    from aesthetic_predictor import get_aesthetic_model

    try:
        if not path.exists():
            check_answers(f"https://github.com/LAION-AI/aesthetic-predictor/blob/main/{path.name}?raw=true")
        return dict(get_aesthetic_model(size).state_dict())
    except (URLError, OSError) as error:
        path.unlink(missing_ok=True)  # half a download would be taken for the head the next time
        raise WeightsMissing(
            f"the aesthetic head {size!r} is not on this machine and cannot be downloaded ({error}).\n"
            f"  needed: {_LAION[size]} of github.com/LAION-AI/aesthetic-predictor\n"
            f"  searched:  {path.parent} and the network\n"
            f"  offline: place that file at {path} on every node, or anywhere and set `aesthetic: {{head: "
            "FILE}` in the --config file\n"
            "  or skip the score: --without aesthetic"
        ) from error


def _own_head(head: str) -> dict[str, Any]:
    if not Path(head).is_file():
        raise UserError(f"the aesthetic head {head!r} is neither a file nor one of LAION's ({', '.join(_LAION)})")
    return read_tensors(Path(head))
