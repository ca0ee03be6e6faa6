"""Talks to an OpenAI-compatible endpoint: many questions at a time, each answer a caption or the reason for none.

The `openai` client does time-outs, retries with back-off, and Retry-After. What it leaves open is bounded here: how
long and how large an answer may be, how many requests are in flight, and how long one tries an endpoint that is down.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai

from curation.captioners.endpoint import EndpointConfig, NoCaption
from curation.captions import Caption, clean
from curation.scores.base import ClipView

_MAX_ANSWER_BYTES = 1 << 20
_MAX_CAPTION_CHARS = 2000
_MAX_ERROR_CHARS = 200
_CONNECT_S = 10.0
_DOWN = (401, 403, 404, 502, 503, 504)
"""Statuses that say something of the endpoint, not of one request: no access, no such model, nobody there."""


class Chat:
    """An endpoint and its model. It is not contacted before the first question."""

    def __init__(self, config: EndpointConfig, key: str) -> None:
        self._config, self._key = config, key
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=key or "none",  # servers that want no key ignore it
            max_retries=config.retries,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultHttpx2Client(
                timeout=httpx2.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
                event_hooks={"response": [lambda response: _bound(response, config.timeout_s)]},
            ),
        )

    def captions(
        self, source: str, batch: Sequence[ClipView], question: Callable[[ClipView], list[dict[str, Any]]]
    ) -> list[Caption]:
        """A caption per clip, in order. `question` makes the parts of a message, or raises NoCaption."""
        breaker = _Breaker(self._config.give_up_after)

        def caption(clip: ClipView) -> Caption:
            try:
                return Caption(source=source, text=self._ask(question(clip), breaker))
            except NoCaption as reason:
                return Caption(source=source, error=self._presentable(str(reason)))
            except Exception as error:  # whatever a picture or an answer does to a library is this clip's alone
                return Caption(source=source, error=self._presentable(f"{type(error).__name__}: {error}"))

        with ThreadPoolExecutor(self._config.max_in_flight) as pool:
            return list(pool.map(caption, batch))

    def _ask(self, message: list[dict[str, Any]], breaker: "_Breaker") -> str:
        """The answer as a caption. Raises NoCaption."""
        breaker.check()
        config = self._config
        limits = {"max_tokens": config.max_tokens, "temperature": config.temperature}
        messages: Any = [{"role": "user", "content": message}]
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                model=config.model or "",
                messages=messages,
                extra_body={**{key: value for key, value in limits.items() if value is not None}, **config.extra_body},
            )
        except openai.APIStatusError as error:
            reason = f"HTTP {error.status_code}: {_servers_words(error)}"
            raise breaker.failed(reason, down=error.status_code in _DOWN) from error
        except openai.APITimeoutError as error:
            raise breaker.failed(f"no complete answer within {config.timeout_s:g} s", down=True) from error
        except openai.APIConnectionError as error:
            reason = f"no connection to {config.base_url}: {error.__cause__ or error}"
            raise breaker.failed(reason, down=True) from error
        except openai.OpenAIError as error:
            raise breaker.failed(str(error), down=False) from error
        breaker.reached()
        return read_answer(answer.content)

    def _presentable(self, reason: str) -> str:
        """On one short line, without the key, and without a picture that a server sent back."""
        if self._key:
            reason = reason.replace(self._key, "[key]")
        line = clean(re.sub(r"data:image/[^\s\"']*", "[picture]", reason)) or "no reason given"
        return line if len(line) <= _MAX_ERROR_CHARS else f"{line[:_MAX_ERROR_CHARS]} ..."


def read_answer(body: bytes) -> str:
    """The caption in the body of a chat completion. Raises NoCaption."""
    try:
        choice = json.loads(body)["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (ValueError, RecursionError) as error:
        raise NoCaption("the answer is no JSON") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise NoCaption("the answer is no chat completion: it has no choices[0].message.content") from error
    if refusal or ended == "content_filter":
        raise NoCaption(f"the model refused: {refusal or ended}")
    if not isinstance(text, str | None):
        raise NoCaption("the answer is no chat completion: its content is no text")
    caption = tidy(text or "", cut=ended == "length")
    if caption is None:
        raise NoCaption("the answer is empty" + (": it came to max_tokens before that" if ended == "length" else ""))
    return caption


def tidy(answer: str, *, cut: bool = False) -> str | None:
    """An answer as a caption: on one line, without reasoning, control characters and the quotes around it.

    None if nothing is left. A text that is too long, or was `cut`, ends with its last whole sentence, if it has one.
    """
    answer = re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.DOTALL)
    text = clean(answer.rpartition("</think>")[2]) or ""
    for opening, closing in ('""', "''", "“”", "‘’", "«»", "``"):
        inner = text[1:-1]
        quoted = len(text) > 1 and text[0] == opening and text[-1] == closing
        if quoted and opening not in inner and closing not in inner:
            text = inner
    if cut or len(text) > _MAX_CAPTION_CHARS:
        text = text[:_MAX_CAPTION_CHARS]
        ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。!?]", text)]
        text = text[: ends[-1]] if ends else text.rpartition(" ")[0] or text
    return clean(text)


class _Breaker:
    """Stops a batch from asking an endpoint that is down; the next batch has its own and tries again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._reason: str | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises NoCaption while the endpoint is given up."""
        if self._reason is not None:
            raise NoCaption(f"not tried, for the endpoint failed {self._limit} times in a row: {self._reason}")

    def reached(self) -> None:
        with self._lock:
            self._in_a_row, self._reason = 0, None

    def failed(self, reason: str, *, down: bool) -> NoCaption:
        """Count a failure. One that shows that the endpoint is there ends the row."""
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if down else 0
            self._reason = reason if self._in_a_row >= self._limit else None
        return NoCaption(reason)


class _Bounded(httpx2.SyncByteStream):
    """The body of an answer that may be neither endless nor later than the time-out, however it trickles in."""

    def __init__(self, stream: httpx2.SyncByteStream, timeout_s: float) -> None:
        self._stream, self._deadline_s = stream, time.monotonic() + timeout_s

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise openai.OpenAIError(f"the answer has more than {_MAX_ANSWER_BYTES:,} bytes")
            if time.monotonic() > self._deadline_s:
                raise httpx2.ReadTimeout("the answer was not complete in time")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx2.Response, timeout_s: float) -> None:
    """Takes effect before the body is read. No compression was asked for, so none may unfold there."""
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.headers.pop("content-encoding", None)
    response.stream = _Bounded(response.stream, timeout_s)


def _servers_words(error: openai.APIStatusError) -> str:
    """What the server says of its refusal, out of the several shapes that servers use."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return str(body or error.response.reason_phrase or "no reason given")
