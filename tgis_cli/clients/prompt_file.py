"""``--file``: a prompt per line, or a JSON object per line with the prompt and its own parameters.

A file may be larger than memory: it is checked line by line before anything is sent, and read again to be sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tgis_cli.clients.answer import to_json_line
from tgis_cli.clients.parameter_table import as_flag
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.prompts import STDIN, decode, read_lines
from tgis_server.errors import UsageError
from tgis_server.host.regular_file import open_file_or_pipe
from tgis_server.words.sizes import format_bytes, format_count

MAX_COPY_BYTES = 256 << 20  # of a pipe; a file is not copied
CHUNK_BYTES = 1 << 20
MAX_NAMED = 5  # of the invalid lines
JSON_SUFFIXES = (".jsonl", ".ndjson")

Check = Callable[[Parameters, Callable[[str], str]], None]  # also gets the name of a parameter; raises UsageError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to complete."""

    text: str
    parameters: Parameters
    line: int | None = None  # of the file, from 1
    id: Any = None  # of a JSON line; returned with the answer


@dataclass(frozen=True, slots=True)
class PromptFile:
    """An open file whose lines are all valid."""

    stream: BinaryIO
    name: str
    is_json: bool
    common: Parameters  # from the command line; a JSON line may override them
    check: Check
    num_prompts: int = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str, common: Parameters, check: Check) -> Iterator[PromptFile]:
        """
        Args:
            path: ``-`` is standard input.

        Raises:
            UsageError: the file cannot be read, is empty, or has invalid lines, which the message lists.
        """
        if not path:
            raise UsageError("--file is empty: give a file, or - for standard input.")
        name = "Standard input" if path == STDIN else path
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(open_twice_readable(path, name))
            except OSError as error:
                raise UsageError(f"--file {path} cannot be read: {error.strerror}.") from None
            is_json = path.endswith(JSON_SUFFIXES) or first_character(stream, name) == b"{"
            file = cls(stream, name, is_json, common, check)
            yield dataclasses.replace(file, num_prompts=file.count())

    @property
    def setting(self) -> Callable[[str], str]:
        """Gives the name under which a parameter is set in this file or for it."""
        return str if self.is_json else as_flag

    def count(self) -> int:
        """Read and check all lines.

        Raises:
            UsageError: the file has invalid lines or no prompts.
        """
        num_prompts = check_lines(self.name, self._lines(), self._parse)
        if not num_prompts:
            raise UsageError(f'{self.name} is empty: write one text per line, or a JSON object with a "text".')
        return num_prompts

    def prompts(self) -> Iterator[Prompt]:
        """
        Raises:
            UsageError: the file has changed since it was checked.
        """
        for line, data in self._lines():
            try:
                yield self._parse(line, data)
            except UsageError as error:
                raise UsageError(f"{self.name} changed while it was being read; line {line}: {error}") from None

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines that are not blank, with their numbers."""
        self.stream.seek(0)
        try:
            for number, data in enumerate(read_lines(self.stream, self.name), 1):
                if data.strip():
                    yield number, data.removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {error.strerror}.") from None

    def _parse(self, line: int, data: bytes) -> Prompt:
        text = decode(data, "it")
        prompt = parse_object(text, line, self.common) if self.is_json else Prompt(text, self.common, line)
        self.check(prompt.parameters, self.setting)
        return prompt


def check_lines(name: str, lines: Iterable[tuple[int, bytes]], parse: Callable[[int, bytes], object]) -> int:
    """Parse all lines; returns how many there are.

    Raises:
        UsageError: some are wrong; it names the first of them.
    """
    wrong: list[str] = []
    num_wrong = num_lines = 0
    for line, data in lines:
        num_lines += 1
        try:
            parse(line, data)
        except UsageError as error:
            num_wrong += 1
            if len(wrong) < MAX_NAMED:
                wrong.append(f"line {line}: {error}")
    if num_wrong:
        more = f"\n... and {num_wrong - MAX_NAMED} more" if num_wrong > MAX_NAMED else ""
        count = format_count(num_wrong, "wrong line")
        raise UsageError(f"{name} has {count}, so nothing was sent:\n" + "\n".join(wrong) + more)
    return num_lines


def parse_object(text: str, line: int, common: Parameters) -> Prompt:
    """
    Raises:
        UsageError: the line is not an object with a text and valid parameters.
    """
    return to_prompt(read_object(text), line, common)


def read_object(text: str) -> dict[str, Any]:
    """
    Raises:
        UsageError: it is not a JSON object, or has values that cannot be sent.
    """
    try:
        values = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"it is not valid JSON ({error}).") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise UsageError("it has a number with too many digits.") from None
    except RecursionError:
        raise UsageError("its JSON is nested too deeply.") from None
    if not isinstance(values, dict):
        raise UsageError('it is not a JSON object, such as {"text": "Once upon a time", "max_new_tokens": 20}.')
    for name, value in values.items():
        check_value(name, value)
    return values


def to_prompt(values: dict[str, Any], line: int, common: Parameters) -> Prompt:
    """
    Raises:
        UsageError: a text is missing, or a parameter is unknown or out of its range.
    """
    prompt, identifier = values.pop("text", None), values.pop("id", None)
    if not isinstance(prompt, str):
        raise UsageError('it has no "text", or its "text" is not a string.')
    return Prompt(prompt, common.updated(values), line, identifier)


def refuse_constant(name: str) -> NoReturn:
    raise UsageError(f"it is not valid JSON (JSON has no {name}).")


def check_value(name: str, value: Any) -> None:
    """
    Raises:
        UsageError: the value cannot be sent as text, or returned as JSON.
    """
    try:
        to_json_line({name: value}).encode()
    except UnicodeEncodeError:
        raise UsageError(f'its "{name}" has half a surrogate pair, which is not a character.') from None
    except ValueError:
        raise UsageError(f'its "{name}" has a number that is too large.') from None
    except RecursionError:
        raise UsageError(f'its "{name}" is nested too deeply.') from None


def first_character(stream: BinaryIO, name: str) -> bytes:
    """The first character of the first line that is not blank."""
    stream.seek(0)
    return next((line.lstrip(b"\xef\xbb\xbf \t")[:1] for line in read_lines(stream, name) if line.strip()), b"")


@contextlib.contextmanager
def open_twice_readable(path: str, name: str) -> Iterator[BinaryIO]:
    """Open a file to be read twice; one that can be read only once, such as a pipe, is copied to a temporary file."""
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if path == STDIN else stack.enter_context(open_file_or_pipe(Path(path)))
        if path != STDIN and source.seekable():
            yield source
            return
        copy = stack.enter_context(tempfile.TemporaryFile(prefix="tgis-prompts-"))
        copy_input(source, copy, name)
        yield copy


def copy_input(source: BinaryIO, copy: BinaryIO, name: str) -> None:
    """
    Raises:
        UsageError: it is too large for the temporary directory, which others need too.
        OSError: it cannot be read.
    """
    num_bytes = 0
    while chunk := source.read(CHUNK_BYTES):
        num_bytes += len(chunk)
        try:
            if num_bytes > MAX_COPY_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {format_bytes(MAX_COPY_BYTES)}")
            while chunk:
                chunk = chunk[os.write(copy.fileno(), chunk) :]
        except OSError as error:
            raise UsageError(
                f"{name} cannot be copied to the temporary directory ({error.strerror}): write the lines to a file, "
                "and name that file with --file."
            ) from None
