"""Each processor, the choice and token details, case by case. test_sampling_reference.py tests whole batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from implementations import IMPLEMENTATIONS  # noqa: E402
from sampling_ops import make_sampler  # noqa: E402
from tgis_server.engines.sampling import processors  # noqa: E402
from tgis_server.engines.sampling.api import Sampled, SamplingRow  # noqa: E402
from tgis_server.engines.sampling.uniform import splitmix64, uniform  # noqa: E402
from tgis_server.wire.messages import LengthPenalty, SamplingParams, TokenDetail, Wanted  # noqa: E402

VOCAB = 300
EOS = 2
ENDS = frozenset({EOS})
NOTHING = Wanted()


def logits_of(seed: int, rows: int = 1, scale: float = 3.0) -> Any:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def sample(
    ops: str,
    logits: Any,
    *params: SamplingParams,
    index: int = 0,
    prompts: list[list[int]] | None = None,
    seeds: Iterable[int] = (),
) -> tuple[list[int], Any]:
    """Chosen ids and processed scores of new sequences."""
    chooser = make_sampler(ops, VOCAB)
    for slot, param in enumerate(params):
        chooser.start(slot, prompts[slot] if prompts else [], param)
    drawn = dict(enumerate(seeds))
    rows = [SamplingRow(slot, index, param, NOTHING, drawn.get(slot, 0), ENDS) for slot, param in enumerate(params)]
    sampled = chooser.sample(logits.clone(), rows)
    return sampled.ids.tolist(), sampled.scores


def kept(scores: Any) -> list[set[int]]:
    return [set(torch.nonzero(row > -math.inf).flatten().tolist()) for row in scores]


# Processors, one by one


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_mask_keeps_the_ids_whose_bits_are_set_and_changes_no_other_row(ops: str) -> None:
    """Missing bytes forbid their ids; bits beyond the vocabulary are ignored."""
    rows = [SamplingRow(slot, 0, SamplingParams(), NOTHING) for slot in range(3)]

    sampled = make_sampler(ops, VOCAB).sample(
        logits_of(1, 3), rows, {0: bytes([0b101, 0b10]), 2: bytes(37) + b"\x0f\xff"}
    )

    free, guided = kept(sampled.scores)[1], kept(sampled.scores)[::2]
    assert guided == [{0, 2, 9}, {296, 297, 298, 299}]
    assert len(free) == VOCAB


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 10, VOCAB, 10 * VOCAB])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_top_k_equals_transformers(ops: str, seed: int, k: int) -> None:
    logits = logits_of(seed, 4)

    _, ours = sample(ops, logits, *[SamplingParams(temperature=1.0, top_k=k)] * 4)

    assert torch.equal(ours, TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_top_k_keeps_ties_at_the_border(ops: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])

    _, ours = sample(ops, logits, SamplingParams(temperature=1.0, top_k=2))

    assert kept(ours) == [{1, 2, 3, 4}]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_each_row_has_its_own_top_k(ops: str) -> None:
    logits = logits_of(1, 3)

    _, ours = sample(ops, logits, *[SamplingParams(temperature=1.0, top_k=k) for k in (1, 7, 3)])

    assert [len(ids) for ids in kept(ours)] == [1, 7, 3]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_top_p_equals_transformers(ops: str, seed: int, p: float) -> None:
    logits = logits_of(seed, 4)

    _, ours = sample(ops, logits, *[SamplingParams(temperature=1.0, top_p=p)] * 4)

    assert kept(ours) == kept(TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.2, 0.9, 0.999])
def test_top_p_looks_beyond_its_first_candidates(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "NUM_SORTED_FIRST", 4)
    logits = logits_of(5, 4, scale=0.3)

    ours = processors.keep_top_p_(logits.clone(), torch.full((4, 1), p, dtype=torch.float64))

    assert kept(ours) == kept(TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_top_p_keeps_the_lowest_ids_of_a_tie(ops: str) -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 20:30] = 0.0

    _, ours = sample(ops, logits, SamplingParams(temperature=1.0, top_p=0.45))

    assert kept(ours) == [{20, 21, 22, 23, 24}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_typical_p_equals_transformers(ops: str, seed: int, p: float) -> None:
    logits = logits_of(seed, 4)

    _, ours = sample(ops, logits, *[SamplingParams(temperature=1.0, typical_p=p)] * 4)

    assert kept(ours) == kept(TypicalLogitsWarper(p)(None, logits))


def test_typical_p_looks_beyond_its_first_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "NUM_SORTED_FIRST", 4)
    logits = logits_of(6, 4)

    ours = processors.keep_typical_(logits.clone(), torch.full((4, 1), 0.9, dtype=torch.float64))

    assert kept(ours) == kept(TypicalLogitsWarper(0.9)(None, logits))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_typical_p_sees_only_what_top_k_keeps(ops: str) -> None:
    logits = logits_of(7, 2)

    _, ours = sample(ops, logits, *[SamplingParams(temperature=1.0, top_k=12, typical_p=0.6)] * 2)

    assert kept(ours) == kept(TypicalLogitsWarper(0.6)(None, TopKLogitsWarper(12)(None, logits)))


# The end of a sequence, and repetition


@pytest.mark.parametrize("index", [0, 1, 5, 40])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_length_penalty_raises_the_end_token(ops: str, index: int) -> None:
    logits = logits_of(3, 2)
    logits[0, EOS], logits[1, EOS] = -2.0, 2.0
    param = SamplingParams(length_penalty=LengthPenalty(start_index=3, decay_factor=1.5))

    _, scores = sample(ops, logits, param, param, index=index)

    growth = 1.5 ** (index - 3) - 1 if index > 3 else 0.0
    assert scores[:, EOS].tolist() == pytest.approx([-2.0 + 2 * growth, 2.0 + 2 * growth], rel=1e-5)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_length_penalty_waits_for_min_new_tokens(ops: str) -> None:
    param = SamplingParams(min_new_tokens=10, length_penalty=LengthPenalty(start_index=3, decay_factor=2.0))

    _, scores = sample(ops, logits_of(3), param, index=9)

    assert float(scores[0, EOS]) == -math.inf


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_huge_length_penalty_ends_the_sequence(ops: str) -> None:
    param = SamplingParams(temperature=1.0, length_penalty=LengthPenalty(start_index=0, decay_factor=10.0))
    logits = logits_of(3)
    logits[0, EOS] = -1.0

    ids, scores = sample(ops, logits, param, index=5000)

    assert ids == [EOS]
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_length_penalty_does_not_raise_an_end_that_a_mask_forbids(ops: str) -> None:
    param = SamplingParams(temperature=1.0, length_penalty=LengthPenalty(start_index=0, decay_factor=2.0))
    rows = [SamplingRow(0, 5, param, NOTHING, end_ids=ENDS)]

    sampled = make_sampler(ops, VOCAB).sample(logits_of(3), rows, {0: bytes([0b11])})

    assert kept(sampled.scores) == [{0, 1}]
    assert not sampled.scores.isnan().any()


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_each_row_has_its_own_end_ids(ops: str) -> None:
    masked = SamplingParams(min_new_tokens=1)
    raised = SamplingParams(length_penalty=LengthPenalty(start_index=0, decay_factor=2.0))
    rows = [(masked, {EOS, 7}), (masked, {9}), (masked, {EOS, 7}), (masked, set()), (raised, {9}), (raised, {4, 5})]
    logits = torch.ones(len(rows), VOCAB)

    sampled = make_sampler(ops, VOCAB).sample(
        logits.clone(),
        [
            SamplingRow(slot, int(param is raised), param, NOTHING, end_ids=frozenset(ends))
            for slot, (param, ends) in enumerate(rows)
        ],
    )

    assert [set(torch.nonzero(row != 1).flatten().tolist()) for row in sampled.scores] == [ends for _, ends in rows]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_masks_of_any_length_keep_the_ids_whose_bits_are_set(ops: str, temperature: float) -> None:
    param = SamplingParams(temperature=temperature)
    allowed = {0, 9, 17, VOCAB - 1}
    mask = bytearray(-(-VOCAB // 32) * 4)  # whole words: some bits are beyond the vocabulary
    for token_id in (*allowed, VOCAB):
        mask[token_id // 8] |= 1 << token_id % 8
    masks = {1: bytes(mask), 2: bytes(mask[:2])}  # a short mask forbids ids beyond its end
    rows = [SamplingRow(slot, 0, param, NOTHING) for slot in range(3)]

    sampled = make_sampler(ops, VOCAB).sample(logits_of(1, 3), rows, masks)

    assert kept(sampled.scores) == [set(range(VOCAB)), allowed, {0, 9}]
    assert torch.equal(sampled.scores[0], logits_of(1, 3)[0])


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_details_of_a_masked_row_consider_only_allowed_tokens(ops: str) -> None:
    rows = [SamplingRow(0, 0, SamplingParams(), Wanted(logprobs=True, ranks=True, top_n=3, generated_tokens=True))]

    sampled = make_sampler(ops, VOCAB).sample(logits_of(1), rows, {0: bytes([0b101000])})

    assert sampled.details is not None
    logprobs = logits_of(1)[0, [3, 5]].log_softmax(-1)
    assert sampled.details.ranks.tolist() == [1]
    assert sampled.details.logprobs.tolist() == pytest.approx([float(logprobs.max())])
    assert set(sampled.details.top_ids[0].tolist()) - {-1} == {3, 5}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_masked_end_token_is_chosen_if_there_is_no_other(ops: str, temperature: float) -> None:
    param = SamplingParams(temperature=temperature, top_k=2, top_p=0.5, typical_p=0.5, min_new_tokens=1)
    chooser = make_sampler(ops, 1)

    sampled = chooser.sample(torch.ones(1, 1), [SamplingRow(0, 0, param, NOTHING, end_ids=frozenset({0}))])

    assert sampled.ids.tolist() == [0]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_repetition_penalty_applies_to_prompt_and_output(ops: str) -> None:
    param = SamplingParams(repetition_penalty=1.5)
    chooser = make_sampler(ops, VOCAB)
    chooser.start(0, [4, 9], param)
    row = [SamplingRow(0, 0, param, NOTHING)]
    logits = torch.full((1, VOCAB), 1.0)
    logits[0, 50] = 3.0
    chooser.note(chooser.sample(logits.clone(), row))

    sampled = chooser.sample(logits.clone(), row)

    changed = torch.nonzero(sampled.scores[0] != logits[0]).flatten().tolist()
    assert changed == [4, 9, 50]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_new_sequence_has_not_seen_the_tokens_of_the_former_one_in_its_slot(ops: str) -> None:
    param = SamplingParams(repetition_penalty=2.0)
    chooser = make_sampler(ops, VOCAB)
    chooser.start(0, [4], param)
    chooser.stop(0)
    chooser.start(0, [5], param)
    logits = torch.ones(1, VOCAB)

    sampled = chooser.sample(logits, [SamplingRow(0, 0, param, NOTHING)])

    assert torch.nonzero(sampled.scores[0] != 1).flatten().tolist() == [5]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_many_slots_can_use_the_penalty(ops: str) -> None:
    param = SamplingParams(repetition_penalty=2.0)
    chooser = make_sampler(ops, VOCAB)
    for slot in range(20):
        chooser.start(slot, [slot + 10], param)
    logits = torch.ones(20, VOCAB)

    sampled = chooser.sample(logits, [SamplingRow(slot, 0, param, NOTHING) for slot in range(20)])

    assert torch.nonzero(sampled.scores != 1).tolist() == [[slot, slot + 10] for slot in range(20)]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("penalty", [1e-45, 1e-38, 3e38])
@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_an_extreme_repetition_penalty_leaves_a_finite_choice(ops: str, penalty: float, sign: int) -> None:
    param = SamplingParams(temperature=0.05, top_p=0.5, typical_p=0.5, repetition_penalty=penalty, min_new_tokens=1)

    ids, scores = sample(ops, sign * logits_of(1).abs(), param, prompts=[list(range(VOCAB))])

    assert scores[0, ids[0]].isfinite()
    assert not scores.isnan().any()


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_nan_logits_still_give_a_token(ops: str) -> None:
    param = SamplingParams(temperature=1.0, top_k=5, top_p=0.5, typical_p=0.5)

    ids, _ = sample(ops, torch.full((1, VOCAB), math.nan), param)

    assert 0 <= ids[0] < VOCAB


# The choice


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_greedy_takes_the_lowest_of_tied_ids(ops: str) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 17, 250]] = 5.0

    assert sample(ops, logits, SamplingParams())[0] == [17]


def test_splitmix64_equals_its_published_outputs() -> None:
    """The first outputs for seed 1234567, as published with the reference implementation (prng.di.unimi.it)."""
    assert [splitmix64(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_draws_are_in_the_unit_interval(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_frequencies_follow_the_probabilities(ops: str) -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, [3, 8, 200]] = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = logits.expand(4000, -1).clone()
    param = SamplingParams(temperature=1.0)

    ids, _ = sample(ops, rows, *[param] * 4000, seeds=range(4000))

    counts = [ids.count(token_id) / 4000 for token_id in (3, 8, 200)]
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_a_seed_gives_different_draws_for_different_tokens(ops: str) -> None:
    logits = torch.zeros(1, VOCAB)
    param = SamplingParams(temperature=1.0)

    chosen = {sample(ops, logits, param, index=index, seeds=[5])[0][0] for index in range(20)}

    assert len(chosen) > 10


# Token details


def details_of(ops: str, scores: Any, wanted: Wanted, param: SamplingParams | None = None) -> TokenDetail:
    from tgis_server.engines.sampling.details import to_messages

    chooser = make_sampler(ops, VOCAB)
    sampled: Sampled = chooser.sample(scores, [SamplingRow(0, 0, param or SamplingParams(), wanted)])
    assert sampled.details is not None
    return to_messages(sampled.details, [wanted])[0]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_all_ties_at_the_nth_place_are_returned(ops: str) -> None:
    scores = torch.full((1, VOCAB), -5.0)
    scores[0, [30, 10, 20]] = 1.0
    scores[0, 40] = 2.0

    detail = details_of(ops, scores, Wanted(logprobs=True, top_n=2, generated_tokens=True))

    assert detail.top_ids == (40, 10, 20, 30)
    assert list(detail.top_logprobs) == sorted(detail.top_logprobs, reverse=True)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_of_many_ties_the_four_n_lowest_ids_are_returned(ops: str) -> None:
    detail = details_of(ops, torch.zeros(1, VOCAB), Wanted(logprobs=True, top_n=2, generated_tokens=True))

    assert detail.top_ids == tuple(range(8))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_without_logprobs_alternatives_are_sorted_by_id(ops: str) -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, [30, 10]] = torch.tensor([9.0, 8.0])

    detail = details_of(ops, scores, Wanted(top_n=2, generated_tokens=True))

    assert detail == TokenDetail(top_ids=(10, 30), top_logprobs=(0.0, 0.0))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_dropped_tokens_are_not_alternatives(ops: str) -> None:
    param = SamplingParams(temperature=1.0, top_k=2)

    detail = details_of(ops, logits_of(3), Wanted(logprobs=True, top_n=5, generated_tokens=True), param)

    assert len(detail.top_ids) == 2


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_with_top_k_1_the_logprob_is_0_and_the_rank_is_1(ops: str) -> None:
    param = SamplingParams(temperature=1.0, top_k=1)

    detail = details_of(ops, logits_of(3), Wanted(logprobs=True, ranks=True, generated_tokens=True), param)

    assert detail == TokenDetail(logprob=0.0, rank=1)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_if_more_alternatives_than_tokens_are_requested_all_tokens_are_returned(ops: str) -> None:
    detail = details_of(ops, logits_of(3), Wanted(logprobs=True, top_n=10 * VOCAB, generated_tokens=True))

    assert sorted(detail.top_ids) == list(range(VOCAB))


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
def test_each_row_has_its_own_number_of_alternatives(ops: str) -> None:
    from tgis_server.engines.sampling.details import to_messages

    wanted = [Wanted(logprobs=True, top_n=n, ranks=True, generated_tokens=True) for n in (0, 1, 5)]
    chooser = make_sampler(ops, VOCAB)

    rows = [SamplingRow(i, 0, SamplingParams(), one) for i, one in enumerate(wanted)]
    sampled = chooser.sample(logits_of(4, 3), rows)

    assert sampled.details is not None
    assert [len(m.top_ids) for m in to_messages(sampled.details, wanted)] == [0, 1, 5]
