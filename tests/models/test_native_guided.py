"""In the leader's loop, regular expressions guide some rows of a batch and leave the others unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tgis_server.engines.native.runner import NativeRunner
from tgis_server.scheduler import Scheduler, SchedulerLimits
from tgis_server.shard.guides import GrammarCompiler
from tgis_server.shard.inbox import Inbox, Requests
from tgis_server.shard.leader import Leader
from tgis_server.shard.servicer import OpenSession, Outbox
from tgis_server.shard.status import ShardStatus
from tgis_server.wire.messages import FinishReason, Grammar, SamplingParams, Submit, pack_ids
from tiny import Driver, Model

pytest.importorskip("llguidance")

DEMO_MODEL = Path(__file__).resolve().parents[2] / "server" / "tgis_server" / "demo_model"
REGEXES = [r"(red|green), [0-9]{3}!", r"[a-f]{2}(xyz)+\.", r" ?[^a-z]{4,6}"]
PROMPTS = ["Once upon a time", "The"]


class Loop:
    """A leader on real ranks that steps on request."""

    def __init__(self, ranks: Driver, *, plan_ahead: bool) -> None:
        runner: NativeRunner = ranks.runner
        runner.caps = replace(runner.caps, plan_ahead=plan_ahead)
        self.inbox, outbox = Inbox(), Outbox()
        limits = SchedulerLimits.of(
            runner.caps, runner.capacity, max_batch_size=8, max_batch_tokens=16, prefix_cache=True, target_s=1e9
        )
        self.leader = Leader(
            runner,
            Scheduler(limits),
            ShardStatus(),
            self.inbox,
            outbox,
            ToRanks(ranks.followers),  # type: ignore[arg-type]
            is_alone=ranks.followers is None,
            compile_grammar=GrammarCompiler(DEMO_MODEL, runner.facts.vocab_size),
        )
        session = outbox.open()
        assert session is not None
        self.session: OpenSession = session

    def generate(self, *requests: Submit) -> dict[int, list[int]]:
        """Run these requests to their end. Returns token ids by request."""
        self.inbox.put(Requests(self.session.number, list(requests)))
        tokens: dict[int, list[int]] = {request.request_id: [] for request in requests}
        open_ids = set(tokens)
        while open_ids:
            self.leader.step()
            while not self.session.results.empty():
                result = self.session.results.get()
                assert result is not None
                assert not result.failures
                for request_id, token_id, reason in zip(
                    result.request_ids, result.token_ids, result.finish_reasons, strict=True
                ):
                    tokens[request_id].append(token_id)
                    if reason is not FinishReason.NOT_FINISHED:
                        open_ids.remove(request_id)
        return tokens


class ToRanks:
    """Stands in for the plan channel."""

    def __init__(self, followers: Callable[[Any], None] | None) -> None:
        self.publish = followers or (lambda plan: None)


@pytest.mark.parametrize("num_shard", [1, 2])
@pytest.mark.parametrize("plan_ahead", [False, True], ids=["one-step", "two-steps-in-flight"])
def test_guided_rows_match_their_regex_and_do_not_change_others(
    num_shard: int, plan_ahead: bool, shards: Callable[..., tuple[Driver, list[Any]]]
) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    ranks, _ = shards(Model(DEMO_MODEL, None), num_shard)  # type: ignore[arg-type]
    end_ids = frozenset(ranks.runner.facts.end_ids)
    free = [
        Submit(i, pack_ids(tokenizer.encode(prompt).ids), 12, SamplingParams(), end_ids=end_ids)
        for i, prompt in enumerate(PROMPTS)
    ]
    guided = [
        Submit(10 + i, free[0].prompt_ids, 20, SamplingParams(i), end_ids=end_ids, grammar=Grammar("regex", regex))
        for i, regex in enumerate(REGEXES)
    ]
    if num_shard == 1:
        ranks.followers = None
    loop = Loop(ranks, plan_ahead=plan_ahead)
    alone = loop.generate(*free)

    together = loop.generate(*(replace(request, request_id=20 + request.request_id) for request in free), *guided)

    assert [together[20 + request.request_id] for request in free] == [alone[request.request_id] for request in free]
    for request in guided:
        assert request.grammar is not None
        text = tokenizer.decode(together[request.request_id])
        assert together[request.request_id][-1] in end_ids
        assert re.fullmatch(request.grammar.text, text), text
