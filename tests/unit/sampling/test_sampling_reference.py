"""Whole batches with any parameters, compared with a float64 implementation of the contract's text and with
transformers.

Differences between transformers and the contract:

- Of tied scores at the border, ``TopPLogitsWarper`` drops the lowest ids, but the sampler drops the highest. So only
  sorted scores are compared.
- ``ExponentialDecayLengthPenalty`` also acts while the end is masked, where it would give NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    ExponentialDecayLengthPenalty,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import sampling_reference as reference  # noqa: E402
from implementations import IMPLEMENTATIONS  # noqa: E402
from sampling_ops import make_sampler  # noqa: E402
from tgis_server.engines.sampling.api import Sampled, SamplingRow  # noqa: E402
from tgis_server.engines.sampling.details import to_messages  # noqa: E402
from tgis_server.wire.messages import LengthPenalty, SamplingParams, TokenDetail, Wanted  # noqa: E402

SETTINGS = settings(deadline=None, max_examples=100)


@dataclass(frozen=True)
class Case:
    """One row: a sequence during its generation."""

    logits: np.ndarray  # (vocab,) float32
    prompt: list[int]
    output: list[int]
    params: SamplingParams
    wanted: Wanted
    seed: int
    end_ids: list[int]

    @property
    def index(self) -> int:
        return len(self.output)

    @property
    def seen(self) -> list[int]:
        return self.prompt + self.output


@dataclass(frozen=True)
class CaseBatch:
    """Rows with the same vocabulary."""

    cases: list[Case]

    def sample(self, ops: str) -> tuple[Sampled, list[TokenDetail]]:
        """Sample all rows in one batch."""
        vocab_size = len(self.cases[0].logits)
        sampler = make_sampler(ops, vocab_size)
        for slot, case in enumerate(self.cases):
            sampler.start(slot, case.seen, case.params)
        rows = [
            SamplingRow(slot, case.index, case.params, case.wanted, case.seed, frozenset(case.end_ids))
            for slot, case in enumerate(self.cases)
        ]
        sampled = sampler.sample(torch.tensor(np.stack([case.logits for case in self.cases])), rows)
        assert sampled.details is not None
        return sampled, to_messages(sampled.details, [case.wanted for case in self.cases])


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 1000, 2**31 - 1]),
    top_p=st.sampled_from([1.0, 0.1, 0.5, 0.93]),
    typical_p=st.sampled_from([1.0, 0.2, 0.5, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3, 5.0]),
    length_penalty=st.none() | st.builds(LengthPenalty, st.integers(0, 8), st.sampled_from([1.0, 1.4, 10.0])),
    min_new_tokens=st.sampled_from([0, 0, 3]),
)
wanted = st.builds(
    Wanted,
    logprobs=st.booleans(),
    ranks=st.just(True),
    top_n=st.sampled_from([0, 1, 2, 5]),
    generated_tokens=st.just(True),
)


@st.composite
def batches(draw: st.DrawFn, *, max_rows: int = 5) -> CaseBatch:
    vocab_size = draw(st.sampled_from([1, 2, 3, 17, 60]))
    ids = st.integers(0, vocab_size - 1)
    some_ids = st.lists(st.integers(1, max(1, vocab_size - 1)), max_size=3 if vocab_size > 1 else 0)  # token 0 stays
    end_ids = draw(st.lists(some_ids, min_size=1, max_size=2))  # for any row

    def case() -> Case:
        ends = draw(st.sampled_from(end_ids))
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        logits = random.normal(scale=3, size=vocab_size)
        if draw(st.booleans()):
            logits = np.round(logits)  # many ties
        logits[sorted(set(draw(some_ids)) - set(ends))] = -np.inf
        return Case(
            logits.astype(np.float32),
            draw(st.lists(ids, min_size=1, max_size=6)),
            draw(st.lists(ids, max_size=6)),
            draw(params),
            draw(wanted),
            draw(st.integers(0, 2**64 - 1)),
            ends,
        )

    return CaseBatch([case() for _ in range(draw(st.integers(1, max_rows)))])


def processed(batch: CaseBatch) -> list[reference.Reference]:
    """The reference for each row."""
    return [reference.process(c.logits, c.seen, c.index, c.params, c.end_ids) for c in batch.cases]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
@SETTINGS
@given(batch=batches())
def test_each_row_equals_the_contracts_text_in_float64(ops: str, batch: CaseBatch) -> None:
    results = processed(batch)
    expected = [
        reference.choose(result, c.params, c.seed, c.index) for result, c in zip(results, batch.cases, strict=True)
    ]
    assume(all(result.is_clear for result in results))

    sampled, _ = batch.sample(ops)

    assert sampled.ids.tolist() == expected
    np.testing.assert_allclose(sampled.scores, np.stack([r.scores for r in results]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
@SETTINGS
@given(batch=batches())
def test_details_describe_the_processed_scores(ops: str, batch: CaseBatch) -> None:
    sampled, messages = batch.sample(ops)

    for token_id, row, case, message in zip(
        sampled.ids.tolist(), sampled.scores.double().numpy(), batch.cases, messages, strict=True
    ):
        tops = list(zip(message.top_logprobs, message.top_ids, strict=True))
        expected = reference.logprobs(row) if case.wanted.logprobs else np.zeros(len(row))
        assert message.rank == reference.rank(row, token_id)
        assert sorted(message.top_ids) == reference.alternatives(row, case.wanted.top_n)
        assert tops == sorted(tops, key=lambda top: (-top[0], top[1]))
        np.testing.assert_allclose(
            [message.logprob, *message.top_logprobs], expected[[token_id, *message.top_ids]], rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
@SETTINGS
@given(batch=batches())
def test_other_rows_change_nothing(ops: str, batch: CaseBatch) -> None:
    sampled, messages = batch.sample(ops)

    for row, case in enumerate(batch.cases):
        alone, alone_messages = CaseBatch([case]).sample(ops)
        assert torch.equal(alone.ids[0], sampled.ids[row])
        assert torch.equal(alone.scores[0], sampled.scores[row])
        assert alone_messages == messages[row : row + 1]


def transformers_scores(case: Case) -> Any:
    """Scores after transformers' processors in the contract's order, leaving out those that are switched off."""
    params, ids, eos_ids = case.params, torch.tensor([case.seen]), case.end_ids
    processors: list[Any] = []
    if eos_ids and case.index < params.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(len(case.prompt), params.min_new_tokens, eos_ids, "cpu"))
    elif eos_ids and params.length_penalty:
        penalty = (params.length_penalty.start_index, params.length_penalty.decay_factor)
        processors.append(ExponentialDecayLengthPenalty(penalty, eos_ids, len(case.prompt)))
    processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if not params.is_greedy:
        processors.append(TemperatureLogitsWarper(params.temperature))
        processors += [TopKLogitsWarper(params.top_k)] if params.top_k else []
        processors += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
        processors += [TypicalLogitsWarper(params.typical_p)] if params.typical_p < 1 else []
    scores = torch.tensor(case.logits)[None]
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


@pytest.mark.parametrize("ops", IMPLEMENTATIONS)
@SETTINGS
@given(batch=batches(max_rows=3))
def test_each_row_equals_transformers(ops: str, batch: CaseBatch) -> None:
    assume(all(result.is_clear for result in processed(batch)))

    sampled, _ = batch.sample(ops)

    for row, case in zip(sampled.scores, batch.cases, strict=True):
        theirs = transformers_scores(case)
        torch.testing.assert_close(row.sort().values, theirs.sort().values, rtol=1e-5, atol=1e-5)
