"""Base of captioners: scorers whose score is a text, each with a table of its own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict, Unpack

import pyarrow as pa

from clipmill.columns import column
from clipmill.costs import Cost, charge
from clipmill.errors import UserError
from curation.inputs.caption import CaptionError, clean
from curation.scores.base import ClipView, Scorer
from curation.scores.columns import CAPTIONS

MAX_CHARS = 20_000
_TOKENS = ("prompt_tokens", "completion_tokens", "price")


class Tokens(TypedDict, total=False):
    """Tokens spent on a caption."""

    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class GeneratedCaption:
    """The caption of a clip: a text, or the error that prevented it."""

    text: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Values of the captioner's `fields`; those that are missing are null."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Tokens spent on it, also if it failed."""
    error_kind: CaptionError | None = None
    error: str | None = None

    @classmethod
    def failed(cls, error: str, kind: CaptionError = "failed", **tokens: Unpack[Tokens]) -> "GeneratedCaption":
        """A failed caption with its reason."""
        return cls(error=error, error_kind=kind, **tokens)


class NoCaption(Exception):
    """One clip gets no caption; with the reason and the tokens spent."""

    def __init__(self, reason: str, kind: CaptionError = "failed", **tokens: Unpack[Tokens]) -> None:
        super().__init__(reason)
        self.kind, self.tokens = kind, tokens


def without_reasoning(answer: str) -> str:
    """A model's answer without the thoughts that some models write in front of it."""
    return re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.DOTALL).rpartition("</think>")[2]


class Captioner(Scorer):
    """Base of captioners: a captioner is one file with a subclass, found by its address or entry point.

    docs/captions.md has a complete one. `name` is the source of its captions and the prefix of its columns; `needs`,
    `resources`, `Config`, `may_change`, `load` and `version` are those of a scorer. `columns` follow from `fields`.
    """

    folder = CAPTIONS
    fields: tuple[pa.Field, ...] = ()
    """Further columns, made by `clipmill.column`, without the captioner's name, which becomes their prefix."""
    counts_tokens: ClassVar[bool] = False
    """Whether its captions have tokens, and a price if the settings name one."""

    def __init__(self, config: Any = None, fields: Sequence[pa.Field] | None = None) -> None:
        super().__init__(config)
        self.fields = tuple(self.fields if fields is None else fields)
        self.columns = tuple(self._columns())
        self.kept_on_error = tuple(f"{self.name}_{name}" for name in _TOKENS) if self.counts_tokens else ()

    def caption(self, batch: Sequence[ClipView]) -> Sequence[GeneratedCaption | str]:
        """One caption per clip, in order: a text, or with fields, tokens or an error.

        An exception fails only the clip that raises it, as with a scorer.
        """
        raise NotImplementedError

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """The captions as rows of the table."""
        captions = self.caption(batch)
        if not isinstance(captions, Sequence) or isinstance(captions, str):
            raise UserError(f"captioner {self.name}: expected a list of captions, got {type(captions).__name__}")
        return [self._row(GeneratedCaption(text=each) if isinstance(each, str) else each) for each in captions]

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Price of these tokens, in the currency of the settings; None if they have no prices."""
        return None

    def _columns(self) -> Iterator[pa.Field]:
        yield column(f"{self.name}_caption", pa.string(), f"caption by {self.name}")
        for each in self.fields:
            if each.name in ("caption", "error", "error_kind", *_TOKENS):
                raise UserError(f"captioner {self.name}: a field cannot be called {each.name!r}; rename it")
            yield each.with_name(f"{self.name}_{each.name}")
        if self.counts_tokens:
            yield column(f"{self.name}_prompt_tokens", pa.int64(), "tokens of all requests for the clip", unit="tokens")
            yield column(f"{self.name}_completion_tokens", pa.int64(), "tokens of all answers for it", unit="tokens")
            yield column(f"{self.name}_price", pa.float64(), "price of the tokens, in the currency of the settings")

    def _row(self, caption: GeneratedCaption) -> dict[str, Any]:
        if not isinstance(caption, GeneratedCaption):
            raise UserError(
                f"captioner {self.name}: expected a text or a GeneratedCaption, got {type(caption).__name__}"
            )
        names = [each.name for each in self.fields]
        if unknown := sorted(caption.fields.keys() - set(names)):
            raise UserError(f"captioner {self.name} returned the field {unknown[0]!r}; it declares {names} (`fields`)")
        text = clean(caption.text or "")
        error, kind = caption.error, caption.error_kind or "failed"
        if error is None and (text is None or len(text) > MAX_CHARS):
            error = "the caption is empty" if text is None else f"the caption has more than {MAX_CHARS:,} characters"
        values = {"caption": text} | {name: caption.fields.get(name) for name in names} | self._tokens(caption)
        row = {f"{self.name}_{name}": value for name, value in values.items()}
        return row if error is None else row | {f"{self.name}_error": error, f"{self.name}_error_kind": kind}

    def _tokens(self, caption: GeneratedCaption) -> dict[str, Any]:
        if not self.counts_tokens:
            return {}
        spent = caption.prompt_tokens, caption.completion_tokens
        charge(self.name, Cost(tokens_in=spent[0] or 0, tokens_out=spent[1] or 0))
        price = None if spent == (None, None) else self.price(spent[0] or 0, spent[1] or 0)
        return dict(zip(_TOKENS, (*spent, price), strict=True))
