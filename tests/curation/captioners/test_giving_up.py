"""Endpoints that fail for good: given up after a few requests, tried again by one."""

import pytest

from tests.caption_server import CaptionServer, refused_url, refuses, says
from tests.curation.captioners.endpoints import clips, video


def test_an_endpoint_that_is_down_is_given_up_and_the_reason_kept_for_the_next_batches():
    captioner = video(refused_url(), give_up_after=3, max_in_flight=1)
    captions = captioner.caption(clips(20))
    assert all(c.text is None for c in captions)
    assert [c.error.startswith("no connection to http://127.0.0.1:") for c in captions] == [True] * 3 + [False] * 17
    assert captions[-1].error.startswith("not sent: the endpoint failed 3 times in a row: no connection to ")
    assert captioner.caption(clips(1)) == captions[-1:]


def test_an_endpoint_that_was_given_up_is_tried_again_by_one_request_without_retries():
    with CaptionServer([refuses(503)] * 3 + [says("back")]) as server:
        captioner = video(server.url, give_up_after=2, max_in_flight=1, retries=0, pause_s=0)
        assert [c.text for c in captioner.caption(clips(5))] == [None, None, None, "back", "back"]
    with CaptionServer([refuses(503)]) as server:
        captioner = video(server.url, give_up_after=1, max_in_flight=1, retries=1, pause_s=0)
        captioner.caption(clips(1))
        assert len(server.requests) == 2
        captioner.caption(clips(3))
        assert len(server.requests) == 2 + 3


def test_an_endpoint_that_hangs_costs_a_few_time_outs_not_one_per_clip():
    with CaptionServer([says("too late", delay_s=5)]) as server:
        captions = video(server.url, timeout_s=0.3, retries=1, give_up_after=2, max_in_flight=2).caption(clips(40))
    assert {c.text for c in captions} == {None}
    assert len(server.requests) <= 8
    assert sum(c.error.startswith("not sent") for c in captions) >= 36


@pytest.mark.parametrize("status", [401, 404, 503])
def test_an_endpoint_that_lets_nobody_in_is_given_up(status: int):
    with CaptionServer([refuses(status)]) as server:
        captions = video(server.url, give_up_after=3, max_in_flight=1).caption(clips(10))
    assert len(server.requests) == 3
    assert captions[-1].error == f"not sent: the endpoint failed 3 times in a row: HTTP {status}: no"


def test_failures_of_single_requests_do_not_give_the_endpoint_up():
    refusals = [
        refuses(400),
        refuses(500),
        refuses(404),
        refuses(404),
        says("x"),
        refuses(404),
        refuses(404),
        says("y"),
    ]
    with CaptionServer(refusals) as server:
        captions = video(server.url, give_up_after=3, max_in_flight=1).caption(clips(8))
    assert [c.text for c in captions] == [None, None, None, None, "x", None, None, "y"]
