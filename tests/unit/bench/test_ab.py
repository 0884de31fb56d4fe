"""Verdicts of alternating rounds, under the noise of a small shared machine."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tgis_cli.bench.ab import (
    Comparison,
    RoundsEnded,
    Verdict,
    compare_ab,
    describe_progress,
    describe_verdict,
    make_figures,
)
from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.sequences import find_reach, reach_of

RUNS = 1000


class NoisyMachine:
    """Two virtual cores that others use, too.

    Each round varies by 5 %. Besides, the speed drifts, and now and then it is 30 % lower for some rounds in a row.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.drift = 0.0
        self.is_slow = False

    def measure(self, speed: float) -> float:
        self.drift += self.rng.gauss(0, 0.01)
        self.is_slow = self.rng.random() < (0.67 if self.is_slow else 0.03)
        return speed * math.exp(self.drift + self.rng.gauss(0, 0.05)) * (0.7 if self.is_slow else 1.0)


def compare_on_noisy_machine(seed: int, ratio: float) -> Comparison:
    machine = NoisyMachine(seed)
    return compare_ab(lambda: machine.measure(100.0), lambda: machine.measure(100.0 * ratio))


def count(verdict: Verdict, ratio: float) -> int:
    return sum(compare_on_noisy_machine(seed, ratio).verdict is verdict for seed in range(RUNS))


def test_at_most_five_of_a_thousand_equal_pairs_are_called_different():
    assert count(Verdict.DIFFERENT, 1.0) <= 5


@pytest.mark.parametrize("ratio", [1.1, 1 / 1.1])
def test_of_ten_percent_differences_95_of_100_are_found_within_the_limit(ratio):
    found = [compare_on_noisy_machine(seed, ratio) for seed in range(RUNS)]

    right = [one for one in found if one.verdict is Verdict.DIFFERENT and (one.ratio.value > 1) == (ratio > 1)]
    assert len(right) >= 0.95 * RUNS


def test_the_interval_holds_the_truth_at_every_look():
    rng = random.Random(1)

    def has_missed() -> bool:
        samples = [rng.gauss(0, 1) for _ in range(60)]
        return any(abs(sum(samples[:n]) / n) > find_reach(samples[:n], 0.1) for n in range(2, 61))

    assert sum(has_missed() for _ in range(300)) <= 45  # 10 % expected at most


def test_the_reach_solves_the_equation_of_the_martingale():
    num, squares, alpha = 20, 3.0, 0.05

    distance = num * reach_of(num, squares, alpha) ** 2
    ratio = (num + 1) * (squares + distance) / ((num + 1) * squares + distance)

    assert (num + 1) ** -0.5 * ratio ** (num / 2) == pytest.approx(1 / alpha)


def test_rounds_alternate_as_a_b_b_a():
    order = []

    def measure(side: str) -> float:
        order.append(side)
        return 1.0 + 0.1 * len(order) if side == "A" else 1.0

    compare_ab(lambda: measure("A"), lambda: measure("B"), max_pairs=4)

    assert "".join(order) == "ABBAABBA"


def play(*values: float):
    rest = itertools.cycle(values)
    return lambda: next(rest)


def test_a_clear_difference_ends_the_comparison_early():
    comparison = compare_ab(play(100, 101), play(110, 112))

    assert comparison.verdict is Verdict.DIFFERENT
    assert comparison.num_pairs < 10
    assert comparison.ratio.low < 1.1 < comparison.ratio.high


def test_sides_that_hardly_differ_are_equal_even_if_the_difference_is_certain():
    comparison = compare_ab(play(100, 100.1), play(100.5, 100.6))

    assert comparison.verdict is Verdict.EQUAL
    assert comparison.ratio.low > 1


def test_what_counts_as_equal_can_be_wider():
    assert compare_ab(play(100, 101), play(104, 105), equal_within=0.1).verdict is Verdict.EQUAL
    assert compare_ab(play(100, 101), play(104, 105), equal_within=0.02).verdict is Verdict.DIFFERENT


def test_the_limit_leaves_it_undecided():
    comparison = compare_ab(play(100, 130, 90), play(100, 85), max_pairs=12)

    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.num_pairs == 12


def test_every_pair_is_told():
    seen = []

    compare_ab(play(100, 130, 90), play(100, 85), max_pairs=3, on_pair=lambda one: seen.append(describe_progress(one)))

    assert seen[0] == "pair 1 of 3: B/A 1.000"
    assert len(seen) == 3


def test_the_verdict_is_a_sentence_with_its_interval_and_what_could_have_been_found():
    comparison = compare_ab(play(100, 101), play(110, 112))

    first, second = describe_verdict(comparison, "output_tokens_per_s", "higher")

    assert first.startswith("B is better than A: +10.")
    assert "99.5 % interval +" in first
    assert second.startswith("On this machine, 60 pairs find a difference of ")
    assert describe_verdict(comparison, "ttft_p50", "lower")[0].startswith("B is worse than A")


def test_the_smallest_difference_is_found_nine_times_of_ten():
    def measure(rng: random.Random, speed: float):
        return lambda: speed * math.exp(rng.gauss(0, 0.05))

    typical = Comparison()
    for a, b in [(math.exp(0.0707), 1.0), (1.0, math.exp(0.0707))] * 30:
        typical.add_pair(a, b)
    smallest = typical.smallest_difference
    found = [
        compare_ab(measure(rng, 1.0), measure(rng, 1 + smallest)).verdict is Verdict.DIFFERENT
        for rng in map(random.Random, range(200))
    ]

    assert sum(found) >= 0.85 * len(found)


def test_figures_have_both_sides_and_the_ratio():
    comparison = compare_ab(play(100), play(110), max_pairs=1)

    figures = make_figures(comparison, ("A: one", "B: two"), "output_tokens_per_s", "tokens/s", "higher")

    assert [(figure.group, round(figure.estimate.value, 6)) for figure in figures] == [
        ("A: one", 100),
        ("B: two", 110),
        ("B / A", 1.1),
    ]
    assert figures[-1].estimate == Estimate(figures[-1].estimate.value)


def test_a_limit_below_which_nothing_can_be_shown_is_said():
    comparison = compare_ab(play(100, 101), play(110, 112), max_pairs=3)

    assert comparison.verdict is Verdict.UNDECIDED
    assert describe_verdict(comparison, "ttft_p50", "lower")[1] == (
        "So few pairs cannot show a difference: allow more than 3."
    )


def test_more_pairs_are_not_advised_to_a_comparison_that_was_cut():
    comparison = Comparison(max_pairs=60)
    comparison.add_pair(100.0, 110.0)

    found, advice = describe_verdict(comparison, "ttft_p50", "lower")

    assert "after 1 pair of rounds" in found
    assert advice == "So few pairs cannot show a difference: let it run longer."


def test_a_comparison_that_is_cut_keeps_its_complete_pairs():
    left = [100.0, 101.0, 102.0]

    def measure() -> float:
        if not left:
            raise RoundsEnded
        return left.pop()

    comparison = compare_ab(measure, play(100))

    assert comparison.values_a == [102.0, 101.0, 100.0]
    assert comparison.num_pairs == 3
