"""Lengths as they are typed, and drawn."""

from __future__ import annotations

import random

import pytest

from tgis_cli.bench.load.shapes import Lengths
from tgis_server.errors import UsageError


def draw(text: str, count: int = 4000) -> list[int]:
    lengths = Lengths.parse(text, "--input-tokens")
    rng = random.Random(3)
    return [lengths.draw(rng) for _ in range(count)]


def test_a_number_is_always_drawn():
    assert set(draw("128")) == {128}


def test_a_range_is_drawn_evenly_with_both_ends():
    drawn = draw("10:13")

    assert set(drawn) == {10, 11, 12, 13}
    assert sum(drawn) / len(drawn) == pytest.approx(11.5, abs=0.1)


def test_a_normal_length_has_its_mean_and_stays_within_three_deviations():
    drawn = draw("normal:100,20")

    assert sum(drawn) / len(drawn) == pytest.approx(100, abs=1.5)
    assert min(drawn) >= 40
    assert max(drawn) <= 160


def test_a_normal_length_is_at_least_one_token():
    assert min(draw("normal:2,5")) == 1


@pytest.mark.parametrize(
    "text", ["", "12 tokens", "-3", "1:2:3", "normal:5", "normal:x,y", "1e3", "uniform:1,2", "\uff11"]
)
def test_what_is_no_length_is_refused_with_the_forms(text: str):
    with pytest.raises(UsageError, match=r"--input-tokens is .*64:256 \(uniform\)"):
        Lengths.parse(text, "--input-tokens")


@pytest.mark.parametrize("text", ["0", "0:5", "normal:0,1"])
def test_a_text_without_tokens_is_refused(text: str):
    with pytest.raises(UsageError, match="at least one token"):
        Lengths.parse(text, "--output-tokens")


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(UsageError, match="9:5, whose first number is above its second"):
        Lengths.parse("9:5", "--output-tokens")
