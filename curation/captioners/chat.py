"""Client for OpenAI-compatible endpoints: many concurrent requests, each response a caption or an error.

The `openai` client handles retries with backoff and Retry-After. This module and its neighbors bound the rest: time and
size of a response, concurrent requests, requests to an unavailable endpoint; redirects are disabled.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from curation.captioners.base import GeneratedCaption, NoCaption, Tokens, without_reasoning
from curation.captioners.breaker import Breaker
from curation.captioners.endpoint_config import EndpointConfig
from curation.captioners.structured import Structure
from curation.captioners.transport import DeadlineTransport
from curation.inputs.caption import clean
from curation.scores.base import ClipView

_MAX_ANSWER_BYTES = 1 << 20
_MAX_CAPTION_CHARS = 2000
_MAX_ERROR_CHARS = 200
_MAX_TOKENS = 1 << 30
_DOWN = (401, 403, 404, 502, 503, 504)
"""HTTP statuses that concern the endpoint, not a single request: no access, no such model, unavailable."""


class Chat:
    """An endpoint and its model. Connects on the first request."""

    def __init__(self, config: EndpointConfig, key: str, structure: Structure | None = None) -> None:
        self._config, self._key, self._structure = config, key, structure
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=key or "none",  # servers that want no key ignore it
            max_retries=config.retries,
            default_headers={"Accept-Encoding": "identity", "Connection": "close"},
            http_client=openai.DefaultHttpx2Client(
                timeout=None,  # the transport has one deadline for everything
                follow_redirects=False,
                transport=DeadlineTransport(
                    config.base_url or "",
                    timeout_s=config.timeout_s,
                    max_bytes=_MAX_ANSWER_BYTES,
                    connections=config.max_in_flight,
                ),
            ),
        )
        self._breaker = Breaker(config.give_up_after, config.pause_s)
        self._pool = ThreadPoolExecutor(config.max_in_flight)

    def captions(
        self, batch: Sequence[ClipView], question: Callable[[ClipView], list[dict[str, Any]]]
    ) -> list[GeneratedCaption]:
        """One caption per clip, in order. `question` builds the message content, or raises NoCaption.

        Concurrent calls share the requests in flight.
        """

        def caption(clip: ClipView) -> GeneratedCaption:
            try:
                return self._ask(question(clip))
            except NoCaption as reason:
                return GeneratedCaption.failed(self._presentable(str(reason)), reason.kind, **reason.tokens)
            except Exception as error:  # one bad image or answer must not fail the other clips
                return GeneratedCaption.failed(self._presentable(f"{type(error).__name__}: {error}"))

        return list(self._pool.map(caption, batch))

    def unavailable(self) -> str | None:
        """Why the endpoint does not serve the model, or None. Asks once for the list of models; servers without one
        (404, or another format) count as available."""
        try:
            answer = self._client.with_options(max_retries=0).models.with_raw_response.list()
            served = [str(entry["id"]) for entry in json.loads(answer.content)["data"]]
        except openai.OpenAIError as error:
            missing = isinstance(error, openai.APIStatusError) and error.status_code in (404, 405)
            return None if missing else self._presentable(self._reason(error)[0])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        if not served or self._config.model in served:
            return None
        return self._presentable(f"expected the model {self._config.model}, but it serves {', '.join(served[:10])}")

    def _ask(self, message: list[dict[str, Any]]) -> GeneratedCaption:
        """The response as a caption. Raises NoCaption."""
        config, breaker = self._config, self._breaker
        client = self._client.with_options(max_retries=0) if breaker.check() else self._client
        asked: dict[str, Any] = {"max_tokens": config.max_tokens, "temperature": config.temperature}
        asked |= {"response_format": self._structure.request()} if self._structure else {}
        messages: Any = [{"role": "user", "content": message}]
        try:
            answer = client.chat.completions.with_raw_response.create(
                model=config.model or "",
                messages=messages,
                extra_body={**{key: value for key, value in asked.items() if value is not None}, **config.extra_body},
            )
        except openai.OpenAIError as error:
            reason, down = self._reason(error)
            raise breaker.failed(reason, down=down) from error
        breaker.reached()
        return read_answer(answer.content, self._structure)

    def _reason(self, error: openai.OpenAIError) -> tuple[str, bool]:
        """Why a request failed, and whether that concerns the endpoint rather than this request."""
        if isinstance(error, openai.APIStatusError):
            return f"HTTP {error.status_code}: {_error_detail(error)}", error.status_code in _DOWN
        if isinstance(error, openai.APITimeoutError):
            return f"no complete response within {self._config.timeout_s:g} s", True
        if isinstance(error, openai.APIConnectionError):
            return f"no connection to {self._config.base_url}: {error.__cause__ or error}", True
        return str(error), False

    def _presentable(self, reason: str) -> str:
        """On one short line, without the key, and without an image that a server sent back."""
        if self._key:
            reason = reason.replace(self._key, "[key]")
        line = clean(re.sub(r"data:image/[^\s\"']*", "[image]", reason)) or "no reason given"
        return line if len(line) <= _MAX_ERROR_CHARS else f"{line[:_MAX_ERROR_CHARS]} ..."


def read_answer(body: bytes, structure: Structure | None = None) -> GeneratedCaption:
    """The caption in the body of a chat completion. Raises NoCaption."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (ValueError, RecursionError) as error:
        raise NoCaption("the response is not JSON") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise NoCaption("the response is not a chat completion: it has no choices[0].message.content") from error
    tokens = _tokens(completion.get("usage"))
    if refusal or ended == "content_filter":
        raise NoCaption(f"the model refused: {refusal or ended}", **tokens)
    if not isinstance(text, str | None):
        raise NoCaption("the response is not a chat completion: its content is not text", **tokens)
    cut = ended == "length"
    fields: dict[str, Any] = {}
    if structure is not None:
        try:
            caption, fields = structure.read(text or "", cut=cut)
        except NoCaption as reason:
            raise NoCaption(str(reason), reason.kind, **tokens) from reason
    elif (found := tidy(text or "", cut=cut)) is None:
        raise NoCaption(f"the response is empty{': max_tokens was reached before any text' if cut else ''}", **tokens)
    else:
        caption = found
    return GeneratedCaption(text=caption, fields=fields, **tokens)


def _tokens(usage: Any) -> Tokens:
    """Token counts that the endpoint reports; None where missing or implausible."""
    counts = usage if isinstance(usage, Mapping) else {}
    prompt, completion = (
        n if type(n) is int and 0 <= n <= _MAX_TOKENS else None
        for n in (counts.get("prompt_tokens"), counts.get("completion_tokens"))
    )
    return Tokens(prompt_tokens=prompt, completion_tokens=completion)


def tidy(answer: str, *, cut: bool = False) -> str | None:
    """Clean a response: one line, without reasoning, control characters and surrounding quotes.

    None if nothing is left. A text that is too long, or was `cut`, is shortened to its last complete sentence, if any.
    """
    text = clean(without_reasoning(answer)) or ""
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


def _error_detail(error: openai.APIStatusError) -> str:
    """The server's error message, from the several formats in use."""
    if error.response.is_redirect:
        return f"redirects are not followed; set base_url to the target: {error.response.headers['location']}"
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return str(body or error.response.reason_phrase or "no reason given")
