"""Captioners that ask an endpoint: one that answers well, badly, late or not at all."""

import base64
import gzip
import json
import pickle
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from curation.captioners import CAPTIONERS, captioner_spec
from curation.captioners.base import GeneratedCaption, NoCaption
from curation.captioners.chat import read_answer
from curation.captioners.endpoint import MergedConfig, VideoConfig
from curation.inputs.caption import Caption
from curation.scores.base import ClipView
from tests.caption_server import CaptionServer, Reply, refused_url, refuses, says
from tests.curation.captioners.endpoints import clips, merged, one, video, view


def test_an_endpoint_on_this_machine_is_asked_directly_whatever_the_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with CaptionServer([says("A cat walks.")]) as server:
        assert one(server).text == "A cat walks."


def models(*names: str) -> Reply:
    return Reply(body=json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (models("other", "m"), None),
        (models(), None),
        (None, None),  # HTTP 404: a server without a list
        (Reply(body=b"<html>"), None),
        (models("other", "another"), "expected the model m, but it serves other, another"),
        (refuses(401, "bad key"), "HTTP 401: bad key"),
        (refuses(503, "loading"), "HTTP 503: loading"),
    ],
)
def test_whether_an_endpoint_serves_the_model(answer: Reply | None, reason: str | None):
    with CaptionServer([], models=answer) as server:
        assert video(server.url).unavailable() == reason
        assert server.requests == []


def test_an_endpoint_that_is_not_there_is_unavailable():
    assert "no connection to" in (video(refused_url()).unavailable() or "")
    with CaptionServer([], models=Reply(headers_trickle_s=0.05)) as server:
        assert video(server.url, timeout_s=0.3).unavailable() == "no complete response within 0.3 s"


# What is sent


def test_video_sends_the_three_frames_in_order_and_the_prompt():
    with CaptionServer([says("A cat walks.")]) as server:
        (caption,) = video(server.url, model="some/model", max_tokens=99).caption([view(30, 120, 220)])
    assert caption == GeneratedCaption(text="A cat walks.")
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("some/model", 0.0, 99)
    (message,) = request["messages"]
    *images, prompt = message["content"]
    levels = []
    for part in images:
        jpeg = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        levels.append(round(float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean())))
    assert levels == pytest.approx([30, 120, 220], abs=2)
    assert prompt == {"type": "text", "text": VideoConfig().prompt}


def test_limits_that_are_null_are_not_sent_and_further_fields_are():
    with CaptionServer([says("x")]) as server:
        one(server, max_tokens=None, temperature=None, extra_body={"max_completion_tokens": 50, "seed": 1})
    (request,) = server.requests
    assert "max_tokens" not in request
    assert "temperature" not in request
    assert (request["max_completion_tokens"], request["seed"]) == (50, 1)


def test_merged_sends_what_coca_and_video_say_whatever_else_there_is():
    captions = (
        Caption(source="sidecar", text="holiday"),
        Caption(source="merged", text="an older one"),
        Caption(source="video", text='A man "surfs" 🏄.'),
        Caption(source="coca", text="a man on a board"),
    )
    with CaptionServer([says('"A man surfs on a board."')]) as server:
        (caption,) = merged(server.url).caption([view(1, captions=captions)])
    assert caption == GeneratedCaption(text="A man surfs on a board.")
    (part,) = server.requests[0]["messages"][0]["content"]
    assert part["text"] == MergedConfig().prompt + '\n\n"a man on a board"\n"A man \\"surfs\\" 🏄."'


def test_merged_takes_another_caption_where_one_is_missing_and_none_alone():
    failed = Caption.failed("video", "HTTP 500: no")
    coca, sidecar = Caption(source="coca", text="a man"), Caption(source="sidecar", text="holiday")
    before = Caption(source="merged", text="an older one")
    batch = [view(1, captions=c) for c in ((sidecar, coca, failed), (coca, failed), (), (coca, coca), (before, coca))]
    with CaptionServer([says("both")]) as server:
        first, *rest = merged(server.url).caption(batch)
    assert first.text == "both"
    assert server.requests[0]["messages"][0]["content"][0]["text"].endswith('"a man"\n"holiday"')
    assert len(server.requests) == 1
    assert [c.text for c in rest] == [None, None, None, None]
    assert rest[0].error == (
        "nothing to merge: expected two different captions, got one (coca); video failed: HTTP 500: no"
    )
    assert rest[1].error == "nothing to merge: expected two different captions, got none"
    assert {c.error_kind for c in rest} == {"nothing_to_merge"}


def test_captions_keep_the_order_of_the_clips_and_requests_stay_within_the_bound():
    def reply(request: dict[str, Any]) -> Reply:
        jpeg = base64.b64decode(request["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
        level = round(float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean()))
        return says(f"level {level}", delay_s=0.05 * (level % 3))

    with CaptionServer(reply) as server:
        captions = video(server.url, max_in_flight=3).caption(clips(10))
    assert [c.text for c in captions] == [f"level {i}" for i in range(10)]
    assert 1 < server.most_at_once <= 3


def test_a_clip_without_thumbnails_or_with_a_broken_one_is_its_own_failure():
    broken = ClipView(thumbnails=(np.zeros((0, 10, 3), np.uint8),))
    with CaptionServer([says("fine")]) as server:
        captions = video(server.url).caption([ClipView(thumbnails=()), broken, view(1)])
    assert [c.text for c in captions] == [None, None, "fine"]
    assert captions[0].error == "the clip has no frames"
    assert captions[1].error


# Endpoints that misbehave


@pytest.mark.parametrize("bad", [refuses(429), refuses(429, headers={"retry-after": "1"}), refuses(500), refuses(503)])
def test_a_failure_that_may_pass_is_tried_again(bad: Reply, monkeypatch: pytest.MonkeyPatch):
    waits_s: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits_s.append)
    with CaptionServer([bad, says("at last")]) as server:
        assert one(server, retries=1).text == "at last"
    assert len(server.requests) == 2
    (wait_s,) = filter(None, waits_s)  # the server sleeps for no time
    assert wait_s == float(bad.headers["retry-after"]) if bad.headers else wait_s > 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_stays_is_told_with_status_and_reason(status: int):
    with CaptionServer([refuses(status, "too many of you")]) as server:
        caption = one(server, retries=1)
    assert caption == GeneratedCaption.failed(f"HTTP {status}: too many of you")
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_failure_that_cannot_pass_is_not_tried_again(status: int):
    with CaptionServer([refuses(status, "wrong")]) as server:
        assert one(server, retries=3).error == f"HTTP {status}: wrong"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"choices": [{"mess', "not JSON"),
        (b"<html>It works!</html>", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"choices": []}', "not a chat completion"),
        (b'{"choices": null}', "not a chat completion"),
        (b'{"error": "overloaded"}', "not a chat completion"),
        (b'[{"choices": 1}]', "not a chat completion"),
        (b'{"choices": ["text"]}', "not a chat completion"),
        (b'{"choices": [{"message": {"content": {"a": 1}}}]}', "content is not text"),
        (says(None).body, "empty"),
        (says(" \n\u200b").body, "empty"),
        (says('""').body, "empty"),
        (says("<think>so many thoughts", finish_reason="length").body, "max_tokens"),
        (says(None, refusal="I cannot look at that").body, "refused: I cannot look at that"),
        (says("", finish_reason="content_filter").body, "refused: content_filter"),
    ],
)
def test_an_answer_that_is_none_is_a_reason(body: bytes, reason: str):
    with CaptionServer([Reply(body=body)]) as server:
        first, second = video(server.url, max_in_flight=1).caption(clips(2))
    assert first.text is None
    assert reason in first.error
    assert second == first
    assert len(server.requests) == 2
    with pytest.raises(NoCaption, match=reason):
        read_answer(body)


def test_an_endpoint_that_is_slow_is_not_waited_for():
    with CaptionServer([says("too late", delay_s=3), says("in time")]) as server:
        captions = video(server.url, timeout_s=0.5, max_in_flight=1).caption(clips(2))
    assert captions[0].error == "no complete response within 0.5 s"
    assert captions[1].text == "in time"


@pytest.mark.parametrize(
    "slow",
    [
        says("too late", trickle_s=0.1),
        Reply(headers_trickle_s=0.1),
        Reply(early_hints_s=0.1),
        says("too late", delay_s=0.4, trickle_s=0.01),
    ],
    ids=["body", "headers", "interim answers", "headers and body"],
)
@pytest.mark.timeout(60)
def test_an_answer_that_trickles_in_is_not_waited_for(slow: Reply):
    """Not one of them would end by itself within the time that pytest gives the test, or they end late."""
    with CaptionServer([slow]) as server:
        assert one(server, timeout_s=0.5).error == "no complete response within 0.5 s"
    assert len(server.requests) == 1


def test_each_request_has_a_connection_and_a_time_of_its_own():
    with CaptionServer([says(str(i), delay_s=0.3) for i in range(4)]) as server:
        captions = video(server.url, timeout_s=1.0, max_in_flight=1).caption(clips(4))
    assert [c.text for c in captions] == ["0", "1", "2", "3"]
    assert server.connections == 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_named(status: int):
    with CaptionServer([says("from another origin")]) as other:
        away = Reply(status=status, headers={"location": f"{other.url}/chat/completions"})
        with CaptionServer([away]) as server:
            caption = one(server, api_key_env=None)
    assert caption.error.startswith(f"HTTP {status}: redirects are not followed; set base_url to the target: http:")
    assert other.requests == []


def test_an_answer_without_end_or_unfolding_is_refused():
    with CaptionServer([Reply(body=b" " * (2 << 20))]) as server:
        assert one(server, retries=2).error == "the response exceeds 1,048,576 bytes"
        assert len(server.requests) == 1
    packed = gzip.compress(says("x" * 1000).body)
    with CaptionServer([Reply(body=packed, headers={"content-encoding": "gzip"})]) as server:
        assert one(server).error == "the response is not JSON"
    assert server.headers[0]["accept-encoding"] == "identity"


def test_loading_does_not_contact_the_endpoint():
    with CaptionServer([says("x")]) as server:
        video(server.url)
    assert server.requests == []


@pytest.mark.slow
def test_captioners_travel_to_a_worker_and_the_client_is_imported_only_there():
    names = [pickle.loads(pickle.dumps(captioner_spec(name)))().name for name in CAPTIONERS]
    assert names == list(CAPTIONERS) == ["coca", "video", "merged"]
    program = "import sys, curation.captioners; print({'openai', 'torch', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
