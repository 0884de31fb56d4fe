"""Memory of engines without KV blocks: rows of one padded batch, all as long as the longest sequence may become."""

from __future__ import annotations

from bisect import bisect_left, insort

from tgis_server.scheduler.memory import Offer
from tgis_server.scheduler.sequence import Sequence
from tgis_server.wire.messages import Submit


def reserved_tokens(submit: Submit) -> int:
    """How many tokens encoder, prompt and longest output have together; the last output token is never computed."""
    return len(submit.encoder_ids) + len(submit.prompt_ids) + submit.max_new_tokens - 1


class RowMemory:
    """Reserves space for whole outputs, so no sequence is preempted."""

    num_used = 0
    num_cached = 0

    def __init__(self, max_padded_tokens: int) -> None:
        self._max_padded_tokens = max_padded_tokens
        self._lengths: list[int] = []  # reserved tokens of sequences with a slot, ascending

    def refusal(self, submit: Submit) -> str | None:
        if reserved_tokens(submit) <= self._max_padded_tokens:
            return None
        num_input = len(submit.encoder_ids) + len(submit.prompt_ids)
        return (
            f"{num_input} input and {submit.max_new_tokens} new tokens are more than the {self._max_padded_tokens} "
            f"tokens that the server has room for"
        )

    def offer(self, sequence: Sequence) -> Offer | None:
        longest = max(reserved_tokens(sequence.submit), self._lengths[-1] if self._lengths else 0)
        if (len(self._lengths) + 1) * longest > self._max_padded_tokens:
            return None
        return Offer(num_to_encode=sequence.num_encoder_tokens)

    def take(self, sequence: Sequence, offer: Offer) -> None:
        insort(self._lengths, reserved_tokens(sequence.submit))

    def grow(self, sequence: Sequence) -> bool:
        return True

    def commit(self, sequence: Sequence, num_computed: int, *, encoded: bool) -> None:
        pass

    def release(self, sequence: Sequence) -> None:
        del self._lengths[bisect_left(self._lengths, reserved_tokens(sequence.submit))]
