"""Guided requests on the leader, with a rule that can be computed by hand, and the guides of llguidance."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driving import VOCAB_SIZE, every, expected_tokens, mask_of, submit
from test_leader import Loop
from tgis_server.shard.guides import GrammarCompiler, Guide, GuideError
from tgis_server.shard.inbox import Requests, SessionEnded
from tgis_server.wire.messages import Cancel, Grammar, Submit

DEMO_MODEL = Path(__file__).resolve().parents[3] / "server" / "tgis_server" / "demo_model"


class EveryGuide:
    """Follows ``every``, and fails after ``fails_after`` tokens."""

    def __init__(self, grammar: Grammar, fails_after: int) -> None:
        self.grammar, self.fails_after = grammar, fails_after
        self.generated: list[int] = []

    def mask(self) -> bytes:
        return mask_of(self.grammar, self.generated)

    def advance(self, token_id: int) -> None:
        self.generated.append(token_id)
        if len(self.generated) == self.fails_after:
            raise GuideError("the rule has ended")


def compile_every(request: Submit) -> Guide:
    assert request.grammar
    if request.grammar.kind == "wrong":
        raise GuideError("the rule is invalid")
    return EveryGuide(request.grammar, fails_after=2 if request.grammar.kind == "ends" else 100)


BOTH_DEPTHS = pytest.mark.parametrize("plan_ahead", [False, True], ids=["one-step", "two-steps-in-flight"])


@BOTH_DEPTHS
def test_guided_rows_follow_their_rule_and_do_not_affect_others(plan_ahead: bool) -> None:
    loop = Loop(plan_ahead=plan_ahead, compile_grammar=compile_every)
    requests = [submit(i, max_new_tokens=3 + i, grammar=every(i) if i % 2 else None) for i in range(1, 8)]

    tokens, failures = loop.generate(*requests)

    assert tokens == {request.request_id: expected_tokens(request) for request in requests}
    assert failures == {}
    assert loop.leader._guides._guided == {}


@BOTH_DEPTHS
def test_a_preempted_guided_request_resumes_where_it_was(plan_ahead: bool) -> None:
    loop = Loop(plan_ahead=plan_ahead, compile_grammar=compile_every, num_blocks=8)
    requests = [submit(i, prompt=4, max_new_tokens=16, grammar=every(i)) for i in range(1, 4)]

    tokens, _ = loop.generate(*requests)

    assert loop.preemptions > 0
    assert tokens == {request.request_id: expected_tokens(request) for request in requests}


@BOTH_DEPTHS
@pytest.mark.parametrize(
    ("kind", "failure", "num_tokens"),
    [("wrong", ("INVALID_ARGUMENT", "the rule is invalid"), 0), ("ends", ("INTERNAL", "the rule has ended"), 2)],
)
def test_only_the_request_whose_guide_fails_ends(
    kind: str, failure: tuple[str, str], num_tokens: int, plan_ahead: bool
) -> None:
    loop = Loop(plan_ahead=plan_ahead, compile_grammar=compile_every)
    good = [submit(1, max_new_tokens=9), submit(2, max_new_tokens=9, grammar=every(2))]
    bad = submit(3, max_new_tokens=9, grammar=replace(every(3), kind=kind))

    tokens, failures = loop.generate(*good, bad)

    assert failures == {3: failure}
    assert tokens == {1: expected_tokens(good[0]), 2: expected_tokens(good[1]), 3: expected_tokens(bad)[:num_tokens]}
    assert loop.leader._guides._guided == {}


def test_a_guided_request_refused_after_compilation_leaves_nothing_behind() -> None:
    loop = Loop(compile_grammar=compile_every)

    _, failures = loop.generate(submit(1, max_new_tokens=1000, grammar=every(2)))

    assert failures[1][0] == "RESOURCE_EXHAUSTED"
    assert loop.leader._guides._guided == {}


def test_guided_requests_of_an_ended_session_leave_nothing_behind() -> None:
    loop = Loop(compile_grammar=compile_every)
    session = loop.open()
    loop.inbox.put(Requests(session.number, [submit(1, max_new_tokens=50, grammar=every(2))]))
    while not loop.scheduler.num_running:
        loop.leader.step()

    loop.inbox.put(SessionEnded(session.number))
    loop.leader.step()

    assert loop.leader._guides._guided == {}


def test_without_a_compiler_a_guided_request_is_refused() -> None:
    _, failures = Loop().generate(submit(1, grammar=every(2)))

    assert failures == {1: ("INVALID_ARGUMENT", "this server does not support guided decoding")}


def test_a_request_cancelled_during_compilation_never_starts() -> None:
    may_compile = threading.Event()

    def compile_late(request: Submit) -> Guide:
        may_compile.wait(10)
        return compile_every(request)

    loop = Loop(compile_grammar=compile_late)
    session = loop.open()
    loop.inbox.put(Requests(session.number, [submit(1, grammar=every(2)), Cancel(1)]))
    loop.leader.step()
    may_compile.set()

    loop.leader.step()  # receives the compiled grammar

    assert loop.scheduler.is_idle


# With llguidance


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("llguidance")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> GrammarCompiler:
    return GrammarCompiler(DEMO_MODEL, tokenizer.get_vocab_size())


def regex(text: str, *, end_ids: tuple[int, ...] = (1,), **fields: Any) -> Submit:
    return replace(submit(1, grammar=Grammar("regex", text), **fields), end_ids=frozenset(end_ids))


def allowed(guide: Guide) -> set[int]:
    return {8 * i + bit for i, byte in enumerate(guide.mask()) for bit in range(8) if byte >> bit & 1}


def test_a_guide_allows_exactly_the_tokens_that_can_begin_a_match(tokenizer: Any, compiler: GrammarCompiler) -> None:
    guide = compiler(regex("[ab]{3}x"))

    pieces = {tokenizer.decode([i]) for i in allowed(guide)}

    assert pieces == {piece for piece in map(tokenizer.id_to_token, range(1536)) if re.fullmatch("[ab]{1,3}", piece)}


def test_the_end_tokens_of_the_request_are_allowed_where_the_text_may_end(
    tokenizer: Any, compiler: GrammarCompiler
) -> None:
    guide = compiler(regex("ab?", end_ids=(0, 7)))
    before = allowed(guide)
    guide.advance(tokenizer.token_to_id("a"))
    after = allowed(guide)
    guide.advance(tokenizer.token_to_id("b"))

    assert not before & {0, 1, 7}
    assert after == {0, 7, tokenizer.token_to_id("b")}
    assert allowed(guide) == {0, 7}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (regex("[a"), 'the grammar cannot be used: .*invalid regex "\\[a"'),
        (replace(regex(""), grammar=Grammar("poem", "")), "the grammar cannot be used: its kind is poem, but only"),
    ],
    ids=["syntax", "kind"],
)
def test_an_invalid_grammar_is_refused_with_a_sentence(
    request_: Submit, message: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(GuideError, match=message):
        compiler(request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (regex("a", min_new_tokens=2), "allows no more than 1 tokens here, but min_new_tokens is 2"),
        (regex("a", end_ids=()), "allows no token after 1 generated ones"),
    ],
    ids=["too short", "no end"],
)
def test_a_guide_that_allows_no_token_raises_an_error(
    request_: Submit, message: str, tokenizer: Any, compiler: GrammarCompiler
) -> None:
    guide = compiler(request_)
    guide.advance(tokenizer.token_to_id("a"))

    with pytest.raises(GuideError, match=message):
        guide.mask()


def test_a_token_that_does_not_match_is_an_error(tokenizer: Any, compiler: GrammarCompiler) -> None:
    guide = compiler(regex("ab"))

    with pytest.raises(GuideError, match=r"cannot be followed further: .*token \"b\" doesn't satisfy"):
        guide.advance(tokenizer.token_to_id("b"))


def test_a_tokenizer_that_llguidance_does_not_support_fails_the_request(tmp_path: Path, tokenizer: Any) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB_SIZE)}, unk_token="t0")).save(
        str(tmp_path / "tokenizer.json")
    )

    with pytest.raises(GuideError, match="the grammar cannot be used: can't determine decoder type"):
        GrammarCompiler(tmp_path, VOCAB_SIZE)(regex("a"))
