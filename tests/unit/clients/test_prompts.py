"""Where texts come from: words, standard input and files; and the errors for unusable ones."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from screens import open_terminal
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.prompt_file import Prompt, PromptFile
from tgis_cli.clients.prompts import read_prompt
from tgis_server.errors import UsageError

COMMON = Parameters(max_new_tokens=9)


def stdin(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data))


@pytest.mark.parametrize(
    ("words", "data", "prompt"),
    [
        (["Once", "upon", "a time"], b"unused", "Once upon a time"),
        ([], b"Once\nupon\n", "Once\nupon"),
        ([], b"Once\r\n", "Once"),
        ([], b"\xef\xbb\xbfOnce", "Once"),  # a byte order mark
        (["-"], "é\n".encode(), "é"),
        (["Sum up:", "-"], b"a long text\n", "Sum up: a long text"),
        ([""], b"unused", ""),
    ],
)
def test_words_are_joined_and_a_dash_is_standard_input(words: list[str], data: bytes, prompt: str):
    assert read_prompt(words, stdin(data)) == prompt


@pytest.mark.parametrize(
    ("words", "data", "sentence"),
    [
        ([], b"", "Standard input is empty: pipe text in"),
        (["-"], b" \n\n", "Standard input is empty: pipe text in"),
        ([], b"caf\xe9", "Standard input is not UTF-8 at byte 3: convert it"),
        (["-", "-"], b"x", "- is given 2 times"),
        (["caf\udce9"], b"", "The text is not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_used_is_a_usage_error(words: list[str], data: bytes, sentence: str):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        read_prompt(words, stdin(data))


def test_without_words_a_terminal_has_no_text_yet():
    with open_terminal() as terminal:
        assert read_prompt([], terminal.stream) is None


def read_file(path: Path, common: Parameters = COMMON) -> list[Prompt]:
    with PromptFile.open(str(path), common, lambda *_: None) as file:
        prompts = list(file.prompts())
        assert len(prompts) == file.num_prompts
        return prompts


def test_each_line_that_is_not_blank_is_a_prompt(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"one\r\n\n  two  \nthree")

    assert read_file(path) == [
        Prompt("one", COMMON, line=1),
        Prompt("  two  ", COMMON, line=3),
        Prompt("three", COMMON, line=4),
    ]


def test_a_json_line_has_a_text_and_its_own_parameters(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text('{"text": "a\\nb", "top_k": 3, "id": [1]}\n{"text": "c", "max-new-tokens": 2, "stop": ["x"]}\n')

    assert read_file(path) == [
        Prompt("a\nb", Parameters(max_new_tokens=9, top_k=3), line=1, id=[1]),
        Prompt("c", Parameters(max_new_tokens=2, stop=("x",)), line=2),
    ]


def test_all_invalid_lines_are_listed_before_anything_is_sent(tmp_path: Path):
    lines = [
        '{"text": "fine"}',
        '{"text": 3}',
        "text",
        '{"text": "x", "top_k": -1}',
        '{"text": "x", "tpo_k": 1}',
        "[]",
        '{"text": "\\ud800"}',
        "{}",
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))

    with pytest.raises(UsageError) as caught:
        read_file(path)

    assert str(caught.value).splitlines() == [
        f"{path} has 7 wrong lines, so nothing was sent:",
        'line 2: it has no "text", or its "text" is not a string.',
        "line 3: it is not valid JSON (Expecting value: line 1 column 1 (char 0)).",
        "line 4: top_k is -1, but must be an integer from 0 to 2147483647.",
        "line 5: No such parameter: tpo_k; did you mean top_k?",
        'line 6: it is not a JSON object, such as {"text": "Once upon a time", "max_new_tokens": 20}.',
        "... and 2 more",
    ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\n \n", "is empty: write one text per line"),
        (b"a\ncaf\xe9\n", "has 1 wrong line, so nothing was sent:\nline 2: it is not UTF-8 at byte 3"),
        (b"{" * 100_000, "has 1 wrong line, so nothing was sent:\nline 1: it"),
        *(
            (b'{"text": "x"}\n{"text": "x", "%s}' % data, f"has 1 wrong line, so nothing was sent:\nline 2: {reason}")
            for data, reason in (
                (b'id": "\\ud800"', 'its "id" has half a surrogate pair, which is not a character.'),
                (b'id": [{"a\\udc00": 1}]', 'its "id" has half a surrogate pair'),
                (b'stop": ["\\ud800"]', 'its "stop" has half a surrogate pair'),
                (b'id": NaN', "it is not valid JSON (JSON has no NaN)."),
                (b'id": [-Infinity]', "it is not valid JSON (JSON has no -Infinity)."),
                (b'id": 1e999', 'its "id" has a number that is too large.'),
            )
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_a_usage_error(tmp_path: Path, data: bytes, sentence: str):
    path = tmp_path / "prompts"
    path.write_bytes(data)

    with pytest.raises(UsageError) as caught:
        read_file(path)

    assert str(caught.value).startswith(f"{path} {sentence}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/zero", "it is a device, not a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str, reason: str):
    with pytest.raises(UsageError, match=f"cannot be read: {reason}"):
        read_file(tmp_path / name)


def test_endless_input_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.clients.prompts.MAX_TEXT_BYTES", 1 << 20)
    monkeypatch.setattr("tgis_cli.clients.prompt_file.MAX_COPY_BYTES", 1 << 20)
    for use in (lambda: read_prompt([], sys.stdin), lambda: read_file(Path("-"))):
        with open("/dev/zero") as zeros:
            monkeypatch.setattr(sys, "stdin", zeros)
            with pytest.raises(UsageError, match="it has more than 1 MiB"):
                use()


def test_dev_null_is_an_empty_file():
    with pytest.raises(UsageError, match="/dev/null is empty"):
        read_file(Path("/dev/null"))


def test_input_that_can_be_read_only_once_is_still_checked_and_read(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    os.close(writer)
    with os.fdopen(reader) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        prompts = read_file(Path("-"))

    assert [prompt.text for prompt in prompts] == ["one", "two"]


def test_a_pipe_whose_copy_does_not_fit_on_the_disk_is_to_be_written_to_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tgis_cli.clients.prompt_file.os.write", refuse_to_write)
    with open("/dev/zero") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        with pytest.raises(
            UsageError, match=r"^Standard input cannot be copied .* \(No space left on device\): write the lines to"
        ):
            read_file(Path("-"))


def refuse_to_write(descriptor: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "x"}\n')

    with PromptFile.open(str(path), COMMON, lambda *_: None) as file:
        path.write_text("oops\n")
        with pytest.raises(UsageError, match="changed while it was being read; line 1: it is not valid JSON"):
            list(file.prompts())
