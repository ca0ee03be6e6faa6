"""The circuit breaker on a clock of its own: when a request is sent, and what the others are told."""

import pytest

from curation.captioners.base import NoCaption
from curation.captioners.breaker import Breaker


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """Given up after two failures."""
    breaker = Breaker(2, 60, clock)
    for _ in range(2):
        assert not breaker.check()
        breaker.failed("HTTP 503: no", down=True)
    return breaker


def test_nothing_is_sent_during_the_pause_and_the_reason_is_kept(breaker: Breaker, clock: Clock):
    for clock.now_s in (0, 30, 59.9):
        with pytest.raises(NoCaption, match="not sent: the endpoint failed 2 times in a row: HTTP 503: no"):
            breaker.check()


def test_after_the_pause_one_request_tries_it_and_the_others_are_not_sent(breaker: Breaker, clock: Clock):
    clock.now_s = 60
    assert breaker.check()
    with pytest.raises(NoCaption):
        breaker.check()


def test_an_answer_closes_the_circuit(breaker: Breaker, clock: Clock):
    clock.now_s = 60
    breaker.check()
    breaker.reached()
    assert not breaker.check()
    breaker.failed("HTTP 503: no", down=True)
    assert not breaker.check()


def test_another_failure_begins_the_next_pause_with_its_reason(breaker: Breaker, clock: Clock):
    clock.now_s = 60
    breaker.check()
    clock.now_s = 70
    breaker.failed("HTTP 401: no", down=True)
    clock.now_s = 129.9
    with pytest.raises(NoCaption, match="3 times in a row: HTTP 401: no"):
        breaker.check()
    clock.now_s = 130
    assert breaker.check()


def test_a_failure_of_a_single_request_shows_that_the_endpoint_is_there(breaker: Breaker, clock: Clock):
    clock.now_s = 60
    breaker.check()
    breaker.failed("HTTP 400: no", down=False)
    assert not breaker.check()
