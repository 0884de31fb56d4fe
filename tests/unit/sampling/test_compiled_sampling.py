"""Compiled sampling of whole vocabularies compared with torch's, on distributions of every shape."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from implementations import COMPILED, REFERENCE  # noqa: E402
from sampling_ops import make_ops, make_sampler  # noqa: E402
from tgis_server.engines.sampling.api import Sampled, SamplingRow  # noqa: E402
from tgis_server.engines.sampling.uniform import uniform  # noqa: E402
from tgis_server.wire.messages import SamplingParams, Wanted  # noqa: E402

ROWS = 6
NOTHING = Wanted()
compiled = pytest.mark.parametrize("ops", COMPILED)


def peaked(random: Any) -> Any:
    return random * 3 + 12 * (random > 2.5)


def with_dropped(random: Any) -> Any:
    random[:, ::3] = -math.inf
    return random


def with_extremes(random: Any) -> Any:
    random[:, 0] = -3e38
    random[:, -1] = 90.0
    return random


SHAPES = {
    "normal": lambda random: random,
    "peaked": peaked,
    "flat": torch.zeros_like,
    "nearly flat": lambda random: random * 1e-6,
    "ties": lambda random: (2 * random).round(),
    "descending": lambda random: random.sort(-1, descending=True).values,
    "dropped": with_dropped,
    "extremes": with_extremes,
    "one left": lambda random: torch.where(random == random.max(-1, keepdim=True).values, random, -math.inf),
}
CUTS_BY_MASS = [(shape, name) for shape in SHAPES for name in ("top_p", "typical_p")]
CUTS_BY_MASS.remove(("nearly flat", "typical_p"))  # rounding decides which surprise is nearest to their average
shapes = pytest.mark.parametrize("shape", SHAPES)
sizes = pytest.mark.parametrize("size", [7, 1000, 20011])


def logits_of(shape: str, size: int) -> Any:
    return SHAPES[shape](torch.randn(ROWS, size, generator=torch.Generator().manual_seed(size)))


def sample(ops: str, logits: Any, params: list[SamplingParams], wanted: Wanted = NOTHING) -> Sampled:
    """Rows use the parameters in turn; their seeds are their numbers."""
    rows = [SamplingRow(i, 3, params[i % len(params)], wanted, i) for i in range(len(logits))]
    return make_sampler(ops, logits.shape[1]).sample(logits.clone(), rows)


@compiled
@shapes
@sizes
def test_top_k_keeps_what_torch_keeps(ops: str, shape: str, size: int) -> None:
    logits = logits_of(shape, size)
    params = [SamplingParams(temperature=0.7, top_k=k) for k in (1, 5, 40, 3000)]

    assert torch.equal(sample(ops, logits, params).scores, sample(REFERENCE, logits, params).scores)


@compiled
@sizes
@pytest.mark.parametrize(("shape", "name"), CUTS_BY_MASS)
def test_cuts_by_mass_keep_what_torch_keeps(ops: str, shape: str, size: int, name: str) -> None:
    """Sums may differ in their last bits, so the cut is between those of slightly less and slightly more mass."""
    logits = logits_of(shape, size)

    def kept(ops: str, change: float) -> Any:
        params = [SamplingParams(temperature=1.0, **{name: p + change}) for p in (0.02, 0.5, 0.97)]
        return sample(ops, logits, params).scores > -math.inf

    ours = kept(ops, 0.0)

    assert not (kept(REFERENCE, -1e-4) & ~ours).any()
    assert not (ours & ~kept(REFERENCE, 1e-4)).any()


@compiled
@shapes
@sizes
def test_the_choice_is_where_the_cumulative_probability_passes_the_draw(ops: str, shape: str, size: int) -> None:
    sampled = sample(ops, logits_of(shape, size), [SamplingParams(1.0), SamplingParams(0.6, 50, 0.9, 0.9)])

    probabilities = sampled.scores.double().softmax(-1)
    mass = probabilities.gather(-1, sampled.ids[:, None]).squeeze(-1)
    up_to = probabilities.cumsum(-1).gather(-1, sampled.ids[:, None]).squeeze(-1)
    draws = torch.tensor([uniform(i, 3) for i in range(ROWS)], dtype=torch.float64)
    assert (mass > 0).all()
    assert (up_to > draws - 1e-6).all()
    assert (up_to - mass < draws + 1e-6).all()


@compiled
def test_seeds_give_the_same_tokens_as_with_torch(ops: str) -> None:
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)).expand(200, -1)
    params = [SamplingParams(temperature=0.8, top_p=0.95)]

    assert sample(ops, logits, params).ids.tolist() == sample(REFERENCE, logits, params).ids.tolist()


@compiled
@shapes
@sizes
@pytest.mark.parametrize("top_n", [0, 20])
def test_details_equal_torchs(ops: str, shape: str, size: int, top_n: int) -> None:
    logits = logits_of(shape, size)
    wanted = Wanted(logprobs=True, ranks=True, top_n=top_n, generated_tokens=True)
    params = [SamplingParams(), SamplingParams(temperature=2.0, top_k=3000)]

    ours, theirs = sample(ops, logits, params, wanted), sample(REFERENCE, logits, params, wanted)

    assert ours.ids.tolist() == theirs.ids.tolist()
    assert_details_equal(ours.details, theirs.details)


@compiled
@shapes
@pytest.mark.parametrize("top_n", [0, 3])
def test_descriptions_of_known_tokens_equal_torchs(ops: str, shape: str, top_n: int) -> None:
    logits = logits_of(shape, 501)
    before, ids = logits.clone(), torch.arange(ROWS) * 7

    is_finite, ours = make_ops(ops, 501).describe(logits, ids, top_n)

    assert torch.equal(logits, before)
    assert torch.equal(is_finite, logits.isfinite().all(-1))
    assert_details_equal(ours, make_ops(REFERENCE, 501).describe(logits, ids, top_n)[1])


def assert_details_equal(ours: Any, theirs: Any) -> None:
    is_used = theirs.top_ids >= 0
    assert torch.equal(ours.ranks, theirs.ranks)
    assert torch.equal(ours.top_ids, theirs.top_ids)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(ours.top_logprobs[is_used], theirs.top_logprobs[is_used], rtol=1e-6, atol=2e-6)


@compiled
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(0.7), SamplingParams(0.7, 5, 0.9, 0.9)], ids=["greedy", "plain", "cut"]
)
def test_a_row_that_is_not_finite_is_reported_and_affects_no_other(
    ops: str, size: int, value: float, params: SamplingParams
) -> None:
    wanted = Wanted(logprobs=True, ranks=True, top_n=2, generated_tokens=True)
    logits = logits_of("normal", size)
    damaged = logits.clone()
    damaged[2, size // 2] = value
    damaged[4] = value

    ours, healthy = sample(ops, damaged, [params], wanted), sample(ops, logits, [params], wanted)

    others = [0, 1, 3, 5]
    assert ours.is_finite.tolist() == [True, True, False, True, False, True]
    assert ((ours.ids >= 0) & (ours.ids < size)).all()
    assert torch.equal(ours.ids[others], healthy.ids[others])
    assert torch.equal(ours.scores[others], healthy.scores[others])
    assert ours.details is not None
    assert healthy.details is not None
    assert torch.equal(ours.details.top_ids[others], healthy.details.top_ids[others])


@compiled
def test_logits_may_be_part_of_wider_rows(ops: str) -> None:
    wider = logits_of("normal", 64)
    params = SamplingParams(temperature=1.0, top_k=5)
    rows = [SamplingRow(i, 3, params, NOTHING, i) for i in range(ROWS)]
    expected = sample(ops, wider[:, :50].contiguous(), [params])
    beyond = wider[:, 50:].clone()

    sampled = make_sampler(ops, 50).sample(wider[:, :50], rows)

    assert torch.equal(sampled.scores, expected.scores)
    assert torch.equal(wider[:, 50:], beyond)


@compiled
def test_the_number_of_threads_changes_nothing(ops: str) -> None:
    logits = logits_of("normal", 1000)
    rows = [SamplingRow(i, 3, SamplingParams(1.0, 0, 0.9), NOTHING, i) for i in range(ROWS)]

    one, two = (make_ops(ops, 1000, num_threads).sample(logits.clone(), rows, {}, None) for num_threads in (1, 2))

    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.ids, two.ids)
