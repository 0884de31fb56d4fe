"""Guided decoding on the leader: which tokens may follow so that the text matches the request's grammar.

A worker compiles a grammar before its request reaches the scheduler. From then on, for each committed token, another
worker advances the request's guide and computes the next mask while the forward pass runs. Only llguidance interprets
grammars. The step loop calls everything here and waits only for the masks of a step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tgis_server.shard.inbox import Compiled, Inbox
from tgis_server.shard.worker import Worker
from tgis_server.wire.messages import Cancel, FinishReason, Grammar, StepResult, Submit

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

MASK_TIMEOUT_S = 5.0  # a mask usually takes less than a millisecond; its step waits for it
MAX_REASON = 200  # characters of llguidance's message


class GuideError(Exception):
    """A request cannot be guided. The message is a sentence for its client; other requests are not affected."""


class Guide(Protocol):
    """One request's position in its grammar. Used by one thread at a time."""

    def mask(self) -> bytes:
        """The tokens that may follow; see ``Masks``.

        Raises:
            GuideError: there are none, or they cannot be determined.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Advance by a generated token.

        Raises:
            GuideError: the token does not match the grammar.
        """
        ...


Compiler = Callable[[Submit], Guide]


class GrammarCompiler:
    """Makes guides for one model. The tokenizer is prepared for llguidance when the first grammar is compiled."""

    def __init__(self, model_dir: Path, vocab_size: int) -> None:
        self._model_dir = model_dir
        self._vocab_size = vocab_size
        self._tokens: LLTokenizer | None = None

    def __call__(self, submit: Submit) -> Guide:
        """Compile a request's grammar.

        Raises:
            GuideError: the grammar is invalid, or llguidance is missing or does not support the tokenizer.
        """
        assert submit.grammar is not None, "a request without a grammar needs no guide"
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise GuideError("guided decoding needs a library: pip install 'tgis[guided]'") from None
        try:
            self._tokens = self._tokens or self._read_tokens()
            matcher = LLMatcher(self._tokens, to_llguidance(submit.grammar), log_level=0)
        except ValueError as error:
            raise GuideError(f"the grammar cannot be used: {first_line(error)}") from error
        if matcher.is_error():
            raise GuideError(f"the grammar cannot be used: {first_line(matcher.get_error())}")
        return LlGuide(matcher, submit, self._tokens.eos_tokens)

    def _read_tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._model_dir / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return LLTokenizer(tokenizer.to_str(), n_vocab=self._vocab_size)


class LlGuide:
    """A guide that uses llguidance. The end tokens are the request's, not the tokenizer's."""

    def __init__(self, matcher: LLMatcher, submit: Submit, tokenizer_end_ids: Iterable[int]) -> None:
        self._matcher = matcher
        self._end_ids = submit.end_ids
        self._min_new_tokens = submit.sampling.min_new_tokens
        self._tokenizer_end_ids = tuple(tokenizer_end_ids)
        self._num_generated = 0

    def mask(self) -> bytes:
        mask = bytearray(self._matcher.compute_bitmask())
        self._check()
        for token_id in self._tokenizer_end_ids:
            mask[token_id // 8] &= ~(1 << token_id % 8)
        if self._matcher.is_accepting():
            if self._num_generated < self._min_new_tokens and not any(mask):
                raise GuideError(
                    f"the grammar allows no more than {self._num_generated} tokens here, but min_new_tokens is "
                    f"{self._min_new_tokens}"
                )
            for token_id in self._end_ids:
                mask[token_id // 8] |= 1 << token_id % 8
        if not any(mask):
            raise GuideError(f"the grammar allows no token after {self._num_generated} generated ones")
        return bytes(mask)

    def advance(self, token_id: int) -> None:
        self._num_generated += 1
        if token_id in self._end_ids and self._matcher.is_accepting():
            return
        if not self._matcher.consume_token(token_id):
            self._check()
            raise GuideError(f"token {self._num_generated} does not match the grammar")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GuideError(f"the grammar cannot be followed further: {first_line(self._matcher.get_error())}")


def to_llguidance(grammar: Grammar) -> str:
    """A grammar in llguidance's format.

    Raises:
        ValueError: its kind is not supported.
    """
    from llguidance import LLMatcher

    match grammar.kind:
        case "regex":
            text: str = LLMatcher.grammar_from_regex(grammar.text)
        case _:
            raise ValueError(f"its kind is {grammar.kind}, but only regex is supported")
    return text


def first_line(error: object) -> str:
    """llguidance's message without the state that it appends."""
    words = " ".join(str(error).split("<state>")[0].split())
    return words[:MAX_REASON]


def refuse_grammars(submit: Submit) -> Guide:
    """The compiler of a server without guided decoding."""
    raise GuideError("this server does not support guided decoding")


@dataclass(slots=True)
class _Guided:
    """A guided request in the scheduler."""

    guide: Guide
    next_mask: Future[bytes]


class Guides:
    """All guided requests. Owned by the leader's main thread."""

    def __init__(self, compile_grammar: Compiler, inbox: Inbox) -> None:
        self._compile = compile_grammar
        self._inbox = inbox
        self._held: dict[int, Submit] = {}  # by request id, while their grammars are being compiled
        self._guided: dict[int, _Guided] = {}
        self._compiling, self._computing = Worker("grammars"), Worker("masks")

    def hold_back(self, requests: Iterable[Submit | Cancel]) -> list[Submit | Cancel]:
        """Hold requests with a grammar, which will arrive in the inbox as ``Compiled``; return all others."""
        passed: list[Submit | Cancel] = []
        for request in requests:
            if isinstance(request, Submit) and request.grammar:
                self._hold(request)
                continue
            if isinstance(request, Cancel):
                self.forget(request.request_id)
            passed.append(request)
        return passed

    def _hold(self, submit: Submit) -> None:
        self._held[submit.request_id] = submit

        def report(compiled: Future[Guide]) -> None:
            self._inbox.put(Compiled(submit, compiled))

        self._compiling.run(lambda: self._compile(submit)).add_done_callback(report)

    def release(self, compiled: Compiled) -> Submit | None:
        """The request that waited for this grammar; ``None`` if it has been cancelled.

        Raises:
            GuideError: its grammar cannot be compiled.
        """
        submit = compiled.submit
        if self._held.get(submit.request_id) is not submit:
            return None
        del self._held[submit.request_id]
        guide = result_of(compiled.guide)
        self._guided[submit.request_id] = _Guided(guide, self._computing.run(guide.mask))
        return submit

    def advance(self, result: StepResult) -> None:
        """Advance the guides by a step's tokens and start computing the next masks."""
        if not self._guided:
            return
        for failure in result.failures:
            self.forget(failure.request_id)
        for request_id, token_id, reason in zip(
            result.request_ids, result.token_ids, result.finish_reasons, strict=True
        ):
            if reason is not FinishReason.NOT_FINISHED:
                self.forget(request_id)
            elif guided := self._guided.get(request_id):
                guided.next_mask = self._computing.run(partial(next_mask, guided.guide, token_id))

    def masks(self, rows: Iterable[tuple[int, int]]) -> tuple[dict[int, bytes], dict[int, str]]:
        """Wait for the masks of rows, given with their request ids. Requests that have ended get none.

        Returns:
            The masks by row, and error sentences by request id.
        """
        masks: dict[int, bytes] = {}
        errors: dict[int, str] = {}
        for row, request_id in rows:
            if guided := self._guided.get(request_id):
                try:
                    masks[row] = result_of(guided.next_mask)
                except GuideError as error:
                    errors[request_id] = str(error)
        return masks, errors

    def forget(self, request_id: int) -> None:
        """Drop a request that has ended; unknown ones are ignored."""
        self._held.pop(request_id, None)
        self._guided.pop(request_id, None)

    def forget_all(self) -> None:
        self._held.clear()
        self._guided.clear()


def next_mask(guide: Guide, token_id: int) -> bytes:
    guide.advance(token_id)
    return guide.mask()


def result_of(future: Future[Any]) -> Any:
    """Wait for a worker's result.

    Raises:
        GuideError: the worker failed or took too long.
    """
    try:
        return future.result(MASK_TIMEOUT_S)
    except GuideError:
        raise
    except TimeoutError as error:
        raise GuideError(f"the grammar is too complex: the next mask takes more than {MASK_TIMEOUT_S:g} s") from error
    except Exception as error:
        logger.exception("a grammar could not be processed")
        raise GuideError(f"the grammar could not be processed: {type(error).__name__}: {first_line(error)}") from error
