"""``--prompts FILE``: a JSON object per line with a text, and when to send it if the file is a trace.

The file is read once to be checked; then only the offsets of its lines are held, so it may be larger than memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tgis_cli.bench.load.amount import MAX_LEVEL_S
from tgis_cli.bench.load.calls import Call
from tgis_cli.bench.load.feed import CallShape
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.prompt_file import check_lines, open_twice_readable, read_object, to_prompt
from tgis_cli.clients.prompts import STDIN, decode, read_lines
from tgis_server.errors import UsageError

MAX_OUTPUT = (1 << 32) - 1  # of its field in a request
TEXT, OUTPUT, START = "text", "output_tokens", "start_s"
DIGEST_DIGITS = 16
EXAMPLE = '{"text": "Once upon a time", "output_tokens": 20, "start_s": 0.5}'


@dataclass(slots=True)
class PromptFile:
    """A file whose lines are all correct. It can be pickled; each process opens the file by its path."""

    shape: CallShape
    path: str  # in /proc, where a file without a name has one, too
    places: array[int]  # where each line begins, in bytes
    starts: array[float]  # seconds after the start; empty: not a trace
    digest: str = ""  # of all bytes: the path may be the same for other prompts
    _stream: BinaryIO | None = field(default=None, repr=False)

    @property
    def num_distinct(self) -> int:
        return len(self.places)

    @property
    def is_trace(self) -> bool:
        return bool(self.starts)

    def make_call(self, index: int) -> Call:
        """After the last line the first one follows again."""
        if self._stream is None:
            self._stream = open(self.path, "rb")  # noqa: SIM115  for the life of the process
        self._stream.seek(self.places[index % len(self.places)])
        text, parameters, _ = parse_line(self._stream.readline(), self.shape.parameters)
        return self.shape.make_call([text], 0, parameters, index)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __getstate__(self) -> tuple[Any, ...]:
        return self.shape, self.path, self.places, self.starts, self.digest

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.shape, self.path, self.places, self.starts, self.digest = state
        self._stream = None


@contextlib.contextmanager
def open_prompt_file(path: str, shape: CallShape, speed: float = 1.0) -> Iterator[PromptFile]:
    """Check all lines. A pipe is copied to a temporary file, which the end of the block removes.

    Args:
        speed: a trace is replayed this many times as fast.

    Raises:
        UsageError: the file cannot be read, is empty, or has wrong lines, which are named.
    """
    name = "Standard input" if path == STDIN else path
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open_twice_readable(path, name))
        except OSError as error:
            raise UsageError(f"--prompts {path} cannot be read: {error.strerror}.") from None
        file = PromptFile(shape, f"/proc/{os.getpid()}/fd/{stream.fileno()}", array("Q"), array("d"))
        stack.callback(file.close)
        index_lines(stream, name, file, speed)
        yield file


def index_lines(stream: BinaryIO, name: str, file: PromptFile, speed: float) -> None:
    """Note where each line begins, and the digest of all.

    Raises:
        UsageError: there are wrong lines, or none at all.
    """

    def parse(line: int, data: bytes) -> None:
        _, _, start_s = parse_line(data, file.shape.parameters)
        if file.places and (start_s is None) == file.is_trace:
            raise UsageError(f'some lines have "{START}" and others do not: give it in all lines or in none.')
        if start_s is not None:
            if file.starts and start_s < file.starts[-1]:
                raise UsageError(f'its "{START}" is before that of an earlier line: sort the lines by "{START}".')
            if start_s > MAX_LEVEL_S * speed:
                at_speed = f" at --speed {speed:g}" if speed != 1 else ""
                raise UsageError(f'its "{START}" is more than a day after the start{at_speed}.')
            file.starts.append(start_s)

    def lines() -> Iterator[tuple[int, bytes]]:
        stream.seek(0)
        place, digest = 0, hashlib.sha256()
        for number, data in enumerate(read_lines(stream, name), 1):
            if data.strip():
                yield number, data
                file.places.append(place)
            place += len(data)
            digest.update(data)
        file.digest = digest.hexdigest()[:DIGEST_DIGITS]

    try:
        if not check_lines(name, lines(), parse):
            raise UsageError(f"{name} is empty: write a JSON object per line, such as {EXAMPLE}.")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.") from None


def parse_line(data: bytes, common: Parameters) -> tuple[str, Parameters, float | None]:
    """Text, parameters, and seconds after the start.

    Raises:
        UsageError: it is not such an object.
    """
    values = read_object(decode(data, "it"))
    output, start_s = values.pop(OUTPUT, None), values.pop(START, None)
    prompt = to_prompt(values, 0, common)
    parameters = prompt.parameters
    if output is not None:
        if isinstance(output, bool) or not isinstance(output, int) or not 1 <= output <= MAX_OUTPUT:
            raise UsageError(f'its "{OUTPUT}" is not an integer from 1 to {MAX_OUTPUT}.')
        parameters = dataclasses.replace(parameters, max_new_tokens=output, min_new_tokens=output)
    if start_s is not None and not is_offset(start_s):
        raise UsageError(f'its "{START}" is not a number of seconds, 0 or more.')
    return prompt.text, parameters, start_s


def is_offset(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < math.inf
