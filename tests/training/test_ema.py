"""The average of the weights against its recurrence."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch

from training.ema import Ema


def averaged(weights: Callable[[int], float], decay: float, steps: int) -> tuple[Ema, torch.nn.Parameter]:
    """The average of a parameter that is weights(n) after step n, from weights(0)."""
    parameter = torch.nn.Parameter(torch.full((3,), weights(0)))
    ema = Ema({"w": parameter}, decay)
    for step in range(1, steps + 1):
        with torch.no_grad():
            parameter.fill_(weights(step))
        ema.update(step)
    return ema, parameter


@pytest.mark.parametrize("decay", [0.3, 0.5, 0.9, 0.9999])
def test_thirty_steps_follow_the_recurrence(decay: float) -> None:
    """(1 + n) / (10 + n) reaches 0.3 at n = 3, 0.5 at n = 8, and neither 0.9 nor 0.9999 within thirty steps: the first
    two are capped by the decay for most of them."""
    expected = 5.0
    for step in range(1, 31):
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * (5 + step**2)
    ema, parameter = averaged(lambda step: 5.0 + step**2, decay, 30)
    assert ema.average["w"].tolist() == pytest.approx([expected] * 3)
    assert parameter.tolist() == [905.0] * 3


def test_known_averages() -> None:
    """0 -> 1 after each step: the first with 2/11, the second with 3/12 of what was there."""
    one = averaged(lambda step: float(step > 0), 0.9, 1)[0].average["w"]
    two = averaged(lambda step: float(step > 0), 0.9, 2)[0].average["w"]
    assert one.tolist() == pytest.approx([9 / 11] * 3)
    assert two.tolist() == pytest.approx([1 - 2 / 11 * 3 / 12] * 3)
    capped = averaged(lambda step: float(step > 0), 0.1, 2)[0].average["w"]
    assert capped.tolist() == pytest.approx([1 - 0.1**2] * 3)


def test_the_average_begins_as_a_copy_of_the_weights() -> None:
    ema, parameter = averaged(lambda step: 2.0, 0.5, 0)
    with torch.no_grad():
        parameter.fill_(9.0)
    assert ema.average["w"].tolist() == [2.0] * 3
    assert not ema.average["w"].requires_grad


def test_it_lends_itself_and_takes_itself_back() -> None:
    ema, parameter = averaged(float, 0.5, 7)
    average = ema.average["w"].tolist()
    with suppress(RuntimeError), ema.swapped():
        assert parameter.tolist() == average
        assert ema.average["w"].tolist() == [7.0] * 3
        raise RuntimeError
    assert parameter.tolist() == [7.0] * 3
    assert ema.average["w"].tolist() == average
    ema.swap()
    assert parameter.tolist() == average
