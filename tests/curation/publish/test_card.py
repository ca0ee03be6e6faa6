"""The card: numbers, licences, and text from strangers that stays text."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from curation.publish.card import card
from curation.publish.facts import NOT_STATED, Facts, Scorer, Tally
from curation.publish.layouts import Target
from curation.publish.plan import PublishConfig
from curation.selection.saved import Selection
from curation.selection.steps import FunnelStep

STEP = FunnelStep(rule="motion", asked=">= 25%", removed=60, unscored_dropped=3, clips_left=37, seconds_left=7400.0)
FACTS = Facts(
    selection=Selection(
        name="best",
        clips=37,
        seconds=7400.0,
        total_clips=100,
        total_seconds=30_000.0,
        funnel=(STEP,),
        rules={"rules": {"motion": {"drop_lowest": "25%"}}},
        resolved={"name": "best", "rules": {"motion": {"min": 1.25}}, "where": "uri LIKE '/home/alice/%'"},
        clips_sha256="ab" * 32,
    ),
    clips=36,
    seconds=7200.0,
    bytes=5_000_000_000,
    sources=9,
    licenses=(Tally(name="CC BY 4.0", clips=36, sources=9, seconds=7200.0),),
    captions={"sidecar": 30},
    without_caption=6,
    with_sound=11,
    sizes={"1920 x 1080": 36},
    fps={"24": 36},
    duration_s=(2.0, 3.5, 20.0),
    left_out={"too_short": 1},
    dataset={"format_version": 3, "fingerprint": "cd" * 32},
    scorers=(Scorer(name="aesthetic", version=2, weights={"aesthetic": "0123456789abcdef"}),),
)


def parts(facts: Facts, to: Target = "hf", **changes: Any) -> tuple[dict[str, Any], str]:
    """The YAML head and the text below it."""
    text = card(facts, to=to, config=PublishConfig(**changes), has_sheet=False)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_numbers_are_in_the_text() -> None:
    head, body = parts(FACTS)
    assert head["license"] == "cc-by-4.0"
    for part in (
        "36 clips, 120 min of video from 9 sources, 5 GB",
        "too short (1)",
        "| motion | >= 25% | 63 | 37 | 123 min |",
        "min: 1.25",
        "| CC BY 4.0 | 9 | 36 | 120 min |",
        "| aesthetic | version 2 | weights: aesthetic 0123456789abcdef |",
        "2.00 to 20.00 s, median 3.50 s",
        "hf upload",
    ):
        assert part in body, part
    assert "alice" not in body
    assert "were removed from them" in body
    assert "contact-sheet" not in body


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CC0"], {"license": "cc0-1.0"}),
        (["cc-by 4.0", "CC BY 4.0"], {"license": "cc-by-4.0"}),
        ([NOT_STATED], {"license": "unknown"}),
        ([], {"license": "unknown"}),
        (["CC0", "CC BY 4.0"], {"license": "other", "license_name": "per-source", "license_link": "sources.csv"}),
        (["CC0", NOT_STATED], {"license": "other", "license_name": "per-source", "license_link": "sources.csv"}),
        (["Pexels"], {"license": "other", "license_name": "per-source", "license_link": "sources.csv"}),
    ],
)
def test_the_head_names_a_licence_that_the_hub_knows(names: list[str], expected: dict[str, str]) -> None:
    tallies = tuple(Tally(name=name, clips=1, sources=1, seconds=1.0) for name in names)
    head, _ = parts(replace(FACTS, licenses=tallies))
    assert {key: value for key, value in head.items() if key.startswith("license")} == expected


def test_text_of_strangers_stays_text() -> None:
    hostile = "a | b\n\n# Buy <script>alert(1)</script> [x](javascript:1) `c` ![p](http://t/p.png)"
    facts = replace(
        FACTS,
        licenses=(Tally(name=hostile, clips=1, sources=1, seconds=1.0),),
        captions={hostile: 1},
        notices=(hostile,),
        selection=replace(FACTS.selection, resolved={"where": "```\n# out"}),
    )
    _, body = parts(facts)
    lines = body.splitlines()
    assert not [line for line in lines if line.startswith("# ") and line != "# best"]
    assert "<script" not in body.replace("\\<script", "")
    assert "](javascript" not in body.replace("\\](javascript", "")
    assert body.count("```") % 2 == 0
    row = next(line for line in lines if "Buy" in line and line.startswith("|"))
    assert row.replace("\\|", "").count("|") in (3, 5)


@pytest.mark.parametrize("to", ["hf", "files", "finetrainers", "diffusion-pipe", "musubi"])
def test_every_layout_says_how_to_use_it(to: Target) -> None:
    head, body = parts(FACTS, to)
    assert ("dataset_info" in head) == (to == "hf")
    assert "{" not in body.split("## Selection")[0]
    assert ("16 frames/s" in body) == (to in ("diffusion-pipe", "musubi"))
    assert "24 frames/s" in parts(FACTS, to, fps=24)[1] or to == "hf"


def test_the_card_says_whether_there_is_sound() -> None:
    assert "| sound | none |" in parts(FACTS)[1]
    kept = parts(FACTS, shards={"extraction": {"audio": "keep"}})[1]
    assert "| sound | kept for clips of sources with sound (11) |" in kept
