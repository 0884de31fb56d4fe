"""transformers as the judge of tokens and their details: float32, eager attention, whole sequences in one pass.

``Oracle.scores`` gives the scores that a token was chosen from, after the contract's processors in their order.
Comparisons tolerate 1e-4, because two correct programs do not add in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from tgis_server.wire import generation_pb2 as pb

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Processing:
    """How scores are made from logits; the defaults change nothing."""

    min_new_tokens: int = 0
    length_penalty: tuple[int, float] | None = None
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0


class Oracle:
    """One model, and its tokenizer."""

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)  # a tiny model gains nothing from threads
        self.model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
        self.model.eval()
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        eos = self.model.generation_config.eos_token_id
        self.eos_ids: list[int] = [eos] if isinstance(eos, int) else list(eos or [])
        self._logits = lru_cache(256)(self._compute_logits)

    def ids(self, tokens: Sequence[pb.TokenInfo]) -> list[int]:
        """The ids of returned pieces in the vocabulary."""
        return [self.tokenizer.token_to_id(token.text) for token in tokens]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(len(ids), vocab): row i is for what follows token i."""
        return self._logits(tuple(ids))

    @torch.inference_mode()
    def _compute_logits(self, ids: tuple[int, ...]) -> Tensor:
        return self.model(torch.tensor([ids])).logits[0].float()

    def scores(self, prompt: Sequence[int], output: Sequence[int], processing: Processing) -> Tensor:
        """(len(output), vocab): row i has the scores that output token i was chosen from."""
        logits = self.logits([*prompt, *output])[len(prompt) - 1 : -1]
        rows = [self._process(row, prompt, output[:index], processing) for index, row in enumerate(logits.clone())]
        return torch.stack(rows)

    def _process(self, row: Tensor, prompt: Sequence[int], before: Sequence[int], how: Processing) -> Tensor:
        eos = torch.tensor(self.eos_ids, dtype=torch.int64)
        if len(before) < how.min_new_tokens:
            row[eos] = -math.inf
        elif how.length_penalty and len(before) > how.length_penalty[0]:
            start, factor = how.length_penalty
            row[eos] += row[eos].abs() * (factor ** (len(before) - start) - 1)
        seen = torch.tensor(sorted({*prompt, *before}))
        row[seen] = torch.where(row[seen] < 0, row[seen] * how.repetition_penalty, row[seen] / how.repetition_penalty)
        row = row / how.temperature
        if how.top_k:
            row = row.masked_fill(row < row.topk(how.top_k).values[-1], -math.inf)
        if how.top_p < 1.0:
            ascending, order = row.sort()
            row[order[:-1][ascending.softmax(-1).cumsum(-1)[:-1] <= 1 - how.top_p]] = -math.inf
        if how.typical_p < 1.0:
            row = keep_typical(row, how.typical_p)
        return row


def keep_typical(row: Tensor, mass: float) -> Tensor:
    """Locally typical sampling: the smallest set of tokens with this mass whose surprise is nearest to the average."""
    logprobs = row.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum()
    distance, order = (-logprobs - entropy).abs().sort()
    num_kept = int((logprobs.exp()[order].cumsum(-1) < mass).sum()) + 1
    return row.masked_fill(distance[num_kept - 1] < (-logprobs - entropy).abs(), -math.inf)


def assert_greedy(tokens: Sequence[int], scores: Tensor) -> None:
    """Check that each token is the best one or equally good."""
    gaps = scores.max(-1).values - scores[torch.arange(len(tokens)), list(tokens)]
    assert gaps.max() < TOLERANCE, f"tokens are worse than the best by {gaps.tolist()}"


def assert_details(infos: Sequence[pb.TokenInfo], scores: Tensor, oracle: Oracle, top_n: int) -> None:
    """Check that logprobs, ranks and alternatives of tokens are those of ``scores``, which has a row for each token."""
    for token_id, info, row in zip(oracle.ids(infos), infos, scores, strict=True):
        assert_detail(token_id, info, row, oracle, top_n)


def assert_detail(token_id: int, info: pb.TokenInfo, row: Tensor, oracle: Oracle, top_n: int) -> None:
    logprobs = row.log_softmax(-1)
    assert info.logprob == close_to(logprobs[token_id])
    assert num_above(row, row[token_id] + TOLERANCE) < info.rank <= 1 + num_above(row, row[token_id] - TOLERANCE)
    assert_alternatives(info, logprobs, oracle, min(top_n, num_above(row, -math.inf)))


def assert_alternatives(info: pb.TokenInfo, logprobs: Tensor, oracle: Oracle, count: int) -> None:
    """Check that the ``count`` best are given, and none that is worse."""
    ids = [oracle.tokenizer.token_to_id(top.text) for top in info.top_tokens]
    assert len(ids) == len(set(ids)) >= count
    assert [top.logprob for top in info.top_tokens] == [close_to(logprobs[i]) for i in ids]
    assert all(logprobs[ids] >= logprobs.sort(descending=True).values[count - 1] - TOLERANCE)


def num_above(row: Tensor, border: Tensor | float) -> int:
    return int((row > border).sum())


def close_to(value: Tensor) -> Any:
    return pytest.approx(float(value), abs=TOLERANCE)
