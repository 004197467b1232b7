"""500 broken files: each is refused with a reason, or gives the voxels that another decoder gives too.

What a format cannot know: voxels of NIfTI, Analyze, NRRD, MetaImage, NPY and TIFF that are not packed, and of DICOM,
carry no checksum, so that a flipped bit there changes a voxel for every decoder alike (``agrees``); LZW and JPEG have
none either, and decoders may differ in what they make of the damage (``unconfirmed``), as do those of films. A text
header may be changed into another valid one. What is packed by gzip, zlib, bzip2, PNG or zip knows.
"""

import logging
from collections import Counter

import pytest
from formats import SEEDS
from malformed import DAMAGES, LIMITS, Outcome, case, judge

COUNT = 500
CANNOT_KNOW = {"jpeg", "film", "tiff", "tiff pages", "tiff 16 bit colour", "dicom", "slide"}
"""Formats whose decoders mend or conceal damage each in its own way, so that two of them may differ."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[int, Outcome]:
    logging.disable(logging.CRITICAL)
    found = {number: judge(case(0, number), tmp_path_factory.mktemp("case")) for number in range(COUNT)}
    logging.disable(logging.NOTSET)
    return found


def told(outcomes: dict[int, Outcome], verdict: str) -> list[str]:
    found = ((case(0, number), outcome) for number, outcome in outcomes.items() if outcome.verdict == verdict)
    return [f"{broken.seed}, {broken.damage}: {outcome.reason}" for broken, outcome in found]


def test_no_other_exception_and_no_path_in_a_reason(outcomes):
    assert told(outcomes, "crash") == []


def test_no_wrong_voxels(outcomes):
    assert told(outcomes, "wrong") == []


def test_unconfirmed_voxels_only_where_a_format_cannot_know(outcomes):
    assert {name.split(",")[0] for name in told(outcomes, "unconfirmed")} <= CANNOT_KNOW


def test_memory_stays_within_the_limits(outcomes):
    assert max(outcome.peak for outcome in outcomes.values()) < 3 * LIMITS.size


def test_the_cases_reach_every_format_and_every_damage(outcomes):
    assert len(SEEDS) * len(DAMAGES) <= COUNT
    refused = Counter(case(0, number).seed for number, outcome in outcomes.items() if outcome.verdict == "refused")
    assert set(refused) == set(SEEDS)
    assert sum(refused.values()) > COUNT / 2
    assert any(outcome.verdict == "agrees" for outcome in outcomes.values())


def test_cases_repeat():
    assert case(3, 77) == case(3, 77)
