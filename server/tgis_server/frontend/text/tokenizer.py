"""Text to tokens, in threads: the event loop never tokenizes.

Wraps the model's ``tokenizer.json`` with truncation and padding disabled. It is independent of requests and engines.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import tokenizers

from tgis_server import failures
from tgis_server.errors import GenerationFailed, TgisError
from tgis_server.frontend.text.bos import add_requested_bos
from tgis_server.frontend.text.encoding import WINDOW, Encoding, encode, encode_window, join, window_starts
from tgis_server.frontend.text.lane import Lane
from tgis_server.host.regular_file import read_regular
from tgis_server.model_files import read_beginning, refuse_stand_in
from tgis_server.wire.messages import TokenIds, pack_ids

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")

MAX_TEXTS_PER_JOB = 256  # long jobs delay others; many short ones keep the event loop busy
PARTS_PER_JOB = 8


class TokenizerFailed(GenerationFailed):
    """The library could not tokenize a text; the message is the library's."""


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A prompt as it is sent to the engine."""

    token_ids: TokenIds
    num_tokens_before_truncation: int
    highest_id: int  # -1 without tokens


class Tokenizer:
    """The tokenizer of the served model. Tasks may call it concurrently."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, num_workers: int = 1) -> None:
        """
        Args:
            tokenizer: owned by this object from now on; truncation and padding are disabled.
            num_workers: threads in each lane.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.inner = tokenizer
        self._num_workers = num_workers
        self._generation = Lane("tokenizer", num_workers)
        self._texts = Lane("tokenize-rpc", num_workers)

    @classmethod
    def load(cls, model_dir: Path, num_workers: int, *, tell: Callable[[str], None] = logger.warning) -> Tokenizer:
        """Read ``tokenizer.json`` and, if there is one, ``tokenizer_config.json``.

        Args:
            tell: receives warnings.

        Raises:
            ModelError: a file is missing or broken.
        """
        tokenizer = read_tokenizer(model_dir, tell)
        return cls(tokenizer, num_workers=num_workers)

    async def encode_inputs(self, texts: Sequence[str], truncate_to: int = 0) -> list[EncodedInput | TokenizerFailed]:
        """The tokens of each prompt, at most the rightmost ``truncate_to`` (0 = all), or the library's error."""

        def make(_: str, encoding: Encoding) -> Iterator[EncodedInput]:
            yield self._make_input(encoding, truncate_to)

        made = await self._do_each(self._generation, texts, make, want_offsets=False)
        return [one if isinstance(one, TokenizerFailed) else one[0] for one in made]

    async def tokenize(
        self, texts: Sequence[str], make: Callable[[str, Encoding], Iterator[T]], *, want_offsets: bool = False
    ) -> list[list[T]]:
        """The parts that ``make``, run in a thread, yields for each text and its tokens. Prompts never wait for this.

        Raises:
            TokenizerFailed: with the library's message, for the first text that fails.
        """
        parts = []
        for made in await self._do_each(self._texts, texts, make, want_offsets=want_offsets):
            if isinstance(made, TokenizerFailed):
                raise made
            parts.append(made)
        return parts

    async def run(self, work: Callable[[], T]) -> T:
        """Do slow work of a generation call off the event loop, in a thread that otherwise tokenizes prompts."""
        return await self._generation.run(work)

    def get_piece(self, token_id: int) -> str:
        """The vocabulary piece of a token; empty for an unknown id."""
        return self.inner.id_to_token(token_id) or ""

    def close(self) -> None:
        self._generation.close()
        self._texts.close()

    def _make_input(self, encoding: Encoding, truncate_to: int) -> EncodedInput:
        num_tokens = len(encoding.ids)
        token_ids = pack_ids(encoding.ids[-truncate_to:])  # 0 keeps all
        if encoding.num_prefix and len(token_ids) < num_tokens:  # keep BOS, or whatever a prompt begins with
            token_ids[0] = encoding.ids[0]
        return EncodedInput(token_ids, num_tokens, max(token_ids, default=-1))

    async def _do_each(
        self, lane: Lane, texts: Sequence[str], make: Callable[[str, Encoding], Iterator[T]], *, want_offsets: bool
    ) -> list[list[T] | TokenizerFailed]:
        """The parts that ``make`` yields for each text, or the failure of that text alone."""

        def encode_and_make(part: Sequence[str]) -> list[list[T] | TokenizerFailed]:
            encodings = [attempt(encode_text, text) for text in part]
            return [
                encoding if isinstance(encoding, TokenizerFailed) else list(make(text, encoding))
                for text, encoding in zip(part, encodings, strict=True)
            ]

        encode_text = partial(encode, self.inner, want_offsets=want_offsets)
        num_characters = sum(map(len, texts))
        if num_characters <= WINDOW:
            return await self._do_short(lane, texts, encode_and_make)
        made: list[list[T] | TokenizerFailed] = []
        async with lane.hold(num_characters):
            for is_long, group in groupby(texts, lambda text: len(text) > WINDOW):
                if is_long:
                    made += [await self._do_long(lane, text, make, want_offsets=want_offsets) for text in group]
                else:
                    made += await self._do_short(lane, list(group), encode_and_make)
        return made

    async def _do_short(self, lane: Lane, texts: Sequence[str], work: Callable[[Sequence[str]], list[T]]) -> list[T]:
        """Work on short texts; each job has as many as take about ten milliseconds."""
        most = max(1, min(MAX_TEXTS_PER_JOB, -(-len(texts) // self._num_workers)))
        made = await lane.run_each([partial(work, part) for part in split(texts, most)])
        return [result for results in made for result in results]

    async def _do_long(
        self, lane: Lane, text: str, make: Callable[[str, Encoding], Iterator[T]], *, want_offsets: bool
    ) -> list[T] | TokenizerFailed:
        """Encode a text in windows and take a few parts of ``make`` per job, so other jobs run in between."""
        try:
            parts = make(text, await self._encode_long(lane, text, want_offsets=want_offsets))
        except TokenizerFailed as failed:
            return failed
        made: list[T] = []
        while some := await lane.run(lambda: list(islice(parts, PARTS_PER_JOB))):
            made += some
        return made

    async def _encode_long(self, lane: Lane, text: str, *, want_offsets: bool) -> Encoding:
        """
        Raises:
            TokenizerFailed: with the library's message.
        """
        encode_at = partial(encode_window, self.inner, text, want_offsets=want_offsets)
        windows = await lane.run_each([partial(attempt, encode_at, start) for start in window_starts(len(text))])
        encodings = [window for window in windows if not isinstance(window, TokenizerFailed)]
        if len(encodings) == len(windows) and (joined := await lane.run(partial(join, encodings))):
            return joined
        del windows, encodings
        whole = await lane.run_alone(partial(attempt, partial(encode, self.inner, want_offsets=want_offsets), text))
        if isinstance(whole, TokenizerFailed):
            raise whole
        return whole


def split(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Split texts into groups, each of at most ``most`` texts and about one window of characters."""
    begin = num_characters = 0
    for end, text in enumerate(texts):
        if end - begin >= most or (end > begin and num_characters + len(text) > WINDOW):
            yield texts[begin:end]
            begin, num_characters = end, 0
        num_characters += len(text)
    if begin < len(texts):
        yield texts[begin:]


def read_tokenizer(model_dir: Path, tell: Callable[[str], None]) -> tokenizers.Tokenizer:
    """Read ``tokenizer.json``, and add the BOS that ``tokenizer_config.json`` requests.

    Args:
        tell: receives warnings.

    Raises:
        ModelError: a file is missing or broken.
    """
    file = model_dir / "tokenizer.json"
    if not os.path.lexists(file):
        raise failures.NO_TOKENIZER.error(model_dir=model_dir)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(read_regular(file))
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise explain_tokenizer_error(file, error) from error
    tokenizer.no_padding()  # else padding would hide whether texts begin with BOS
    add_requested_bos(tokenizer, model_dir, tell)
    return tokenizer


def explain_tokenizer_error(file: Path, error: BaseException) -> TgisError:
    """Why a tokenizer does not load: it is unreadable, damaged, or not supported by the library."""
    reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
    try:
        json.loads(read_regular(file))
    except OSError as unreadable:
        return failures.JSON_UNREADABLE.error(file=file, reason=unreadable.strerror)
    except (ValueError, RecursionError):
        refuse_stand_in(file, read_beginning(file))
        return failures.TOKENIZER_UNREADABLE.error(file=file, reason=reason)
    return failures.TOKENIZER_NOT_UNDERSTOOD.error(file=file, version=tokenizers.__version__, reason=reason)


def attempt(work: Callable[[A], T], argument: A) -> T | TokenizerFailed:
    """The result of a call into the library, or its failure."""
    try:
        return work(argument)
    except BaseException as error:
        if not is_library_error(error):
            raise
        return TokenizerFailed(str(error))


def is_library_error(error: BaseException) -> bool:
    """The library raises plain ``Exception`` for everything; its panics are not even ``Exception``s."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
