"""Text to tokens, in a pool of threads: the event loop never tokenizes.

Wraps the model's ``tokenizer.json``; its own truncation and padding are off. Knows nothing of requests or engines.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from tgis_server import failures
from tgis_server.errors import GenerationFailed, TgisError
from tgis_server.model_files import read_beginning, refuse_stand_in

T = TypeVar("T")

MAX_TEXTS_PER_JOB = 256  # long jobs keep others waiting; short ones, for many texts, keep the event loop busy

logger = logging.getLogger(__name__)


class TokenizerFailed(GenerationFailed):
    """The library could not tokenize a text; the message is its own."""


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A prompt as the engine gets it."""

    token_ids: list[int]
    num_tokens_before_truncation: int


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What the Tokenize RPC says about a text."""

    token_ids: list[int]
    tokens: list[str]  # vocabulary pieces
    offsets: list[tuple[int, int]]  # UTF-8 bytes; empty unless asked for


class Tokenizer:
    """The tokenizer of the served model. Encoding methods may be called by any number of tasks at once."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, forced_bos_id: int | None = None, num_workers: int = 1
    ) -> None:
        """
        Args:
            tokenizer: becomes this object's: truncation and padding are switched off.
            forced_bos_id: first token of every truncated prompt, also where the tokenizer itself adds none.
            num_workers: threads.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.inner = tokenizer
        self._forced_bos_id = forced_bos_id
        self._num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="tokenizer")

    @classmethod
    def load(cls, model_dir: Path, num_workers: int) -> Tokenizer:
        """Read ``tokenizer.json`` and, if there is one, ``tokenizer_config.json``.

        Raises:
            ModelError: a file is missing or broken.
        """
        tokenizer = read_tokenizer(model_dir)
        return cls(tokenizer, forced_bos_id=read_forced_bos(model_dir, tokenizer), num_workers=num_workers)

    async def encode_inputs(self, texts: Sequence[str], truncate_to: int = 0) -> list[EncodedInput | TokenizerFailed]:
        """Tokens of prompts, the rightmost ``truncate_to`` of each (0 = all), or the library's complaint."""
        return await self._do_each(texts, lambda text: self._encode_input(text, truncate_to))

    async def tokenize(
        self, texts: Sequence[str], truncate_to: int = 0, *, want_offsets: bool = False
    ) -> list[TokenizedText]:
        """Tokens of texts as the Tokenize RPC cuts them: the last entries, whatever they are.

        Raises:
            TokenizerFailed: with the library's message, for the first text that fails.
        """
        tokenized = []
        for result in await self._do_each(texts, lambda text: self._tokenize(text, truncate_to, want_offsets)):
            if isinstance(result, TokenizerFailed):
                raise result
            tokenized.append(result)
        return tokenized

    def get_piece(self, token_id: int) -> str:
        """The vocabulary piece of a token; an unknown id has none."""
        return self.inner.id_to_token(token_id) or ""

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode_input(self, text: str, truncate_to: int) -> EncodedInput:
        [encoding] = self.inner.encode_batch_fast([text])  # the batch form leaves other threads running meanwhile
        token_ids: list[int] = encoding.ids
        num_tokens = len(token_ids)
        if 0 < truncate_to < num_tokens:
            bos_id = self._get_bos(encoding)
            token_ids = token_ids[num_tokens - truncate_to :]
            if bos_id is not None:
                token_ids[0] = bos_id
        return EncodedInput(token_ids, num_tokens)

    def _get_bos(self, encoding: tokenizers.Encoding) -> int | None:
        """The token that a truncated prompt must begin with: one that the tokenizer put in front, or the configured."""
        if encoding.special_tokens_mask[0] == 1:
            first: int = encoding.ids[0]
            return first
        return self._forced_bos_id

    def _tokenize(self, text: str, truncate_to: int, want_offsets: bool) -> TokenizedText:
        [encoding] = self.inner.encode_batch([text]) if want_offsets else self.inner.encode_batch_fast([text])
        kept = slice(-truncate_to if truncate_to else None, None)
        offsets = to_byte_offsets(text, encoding.offsets[kept]) if want_offsets else []
        token_ids = encoding.ids[kept]
        return TokenizedText(token_ids, [self.get_piece(token_id) for token_id in token_ids], offsets)

    async def run(self, work: Callable[[], T]) -> T:
        """Do long work beside the event loop, in a thread that otherwise tokenizes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _do_each(self, texts: Sequence[str], work: Callable[[str], T]) -> list[T | TokenizerFailed]:
        size = max(1, min(MAX_TEXTS_PER_JOB, -(-len(texts) // self._num_workers)))
        slices = [texts[start : start + size] for start in range(0, len(texts), size)]
        jobs = [self.run(partial(attempt_each, part, work)) for part in slices]
        return [result for results in await asyncio.gather(*jobs) for result in results]


def read_tokenizer(model_dir: Path) -> tokenizers.Tokenizer:
    """What ``tokenizer.json`` describes.

    Raises:
        ModelError: it is missing or broken.
    """
    file = model_dir / "tokenizer.json"
    if not file.is_file():
        raise failures.NO_TOKENIZER.error(model_dir=model_dir)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        # The library raises plain Exception for every kind of broken file, and for some of them it panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise explain(file, error) from error


def explain(file: Path, error: BaseException) -> TgisError:
    """Why a tokenizer does not load: nobody may read it, it is damaged, or the library does not know its like."""
    try:
        json.loads(file.read_bytes())
    except OSError as unreadable:
        return failures.JSON_UNREADABLE.error(file=file, reason=unreadable.strerror)
    except (ValueError, RecursionError):
        refuse_stand_in(file, read_beginning(file))
        return failures.TOKENIZER_UNREADABLE.error(file=file, reason=error)
    return failures.TOKENIZER_NOT_UNDERSTOOD.error(file=file, version=tokenizers.__version__, reason=error)


def attempt_each(texts: Sequence[str], work: Callable[[str], T]) -> list[T | TokenizerFailed]:
    """What ``work`` makes of each text; one that fails harms no other."""
    results: list[T | TokenizerFailed] = []
    for text in texts:
        try:
            results.append(work(text))
        except Exception as error:  # noqa: BLE001  a library border: it raises plain Exception
            results.append(TokenizerFailed(str(error)))
    return results


def to_byte_offsets(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character offsets to offsets in the text's UTF-8."""
    if text.isascii():
        return offsets
    borders = [0]
    for character in text:
        borders.append(borders[-1] + len(character.encode()))
    return [(borders[start], borders[end]) for start, end in offsets]


def read_forced_bos(model_dir: Path, tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id of ``bos_token`` if ``tokenizer_config.json`` says ``add_bos_token``."""
    file = model_dir / "tokenizer_config.json"
    if not file.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise failures.TOKENIZER_UNREADABLE.error(file=file, reason=error) from error
    token = config.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if not config.get("add_bos_token") or not text:
        return None
    bos_id: int | None = tokenizer.token_to_id(text)
    if bos_id is None:
        logger.warning("%s asks for the BOS token %s, which the vocabulary does not have.", file.name, text)
    return bos_id
