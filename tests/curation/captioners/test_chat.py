"""Responses of endpoints: cleaned captions, and responses that are refused."""

import pytest

from curation.captioners.chat import tidy

# What becomes of an answer


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("  A cat\n\n walks.\t", "A cat walks."),
        ('"A cat walks."', "A cat walks."),
        ("“A cat walks.”", "A cat walks."),
        ("'A cat's tail.'", "'A cat's tail.'"),
        ('"Go" and "stop"', '"Go" and "stop"'),
        ('A "cat"', 'A "cat"'),
        ("<think>\nIs it a dog?\n</think>\nA cat.", "A cat."),
        ("Is it a dog?</think>A cat.", "A cat."),
        ("A cat\x00 \x1b[31mwalks\ud800.", "A cat [31mwalks."),
        ("猫が歩く。 👩‍👩‍👧 قطة", "猫が歩く。 👩‍👩‍👧 قطة"),
    ],
)
def test_an_answer_is_tidied(answer: str, caption: str):
    assert tidy(answer) == caption


def test_an_answer_that_is_cut_or_too_long_ends_with_a_sentence():
    assert tidy("A cat walks. It then ju", cut=True) == "A cat walks."
    assert tidy("A cat walks 2.5 met", cut=True) == "A cat walks 2.5"
    assert tidy("猫が歩く。走", cut=True) == "猫が歩く。"
    long = tidy("A cat walks. " * 1000)
    assert len(long) <= 2000
    assert long.endswith("walks.")
    assert len(tidy("x" * 5000)) == 2000
