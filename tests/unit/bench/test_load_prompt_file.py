"""``--prompts FILE``."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tgis_cli.bench.load.feed import CallShape
from tgis_cli.bench.load.prompt_file import PromptFile, open_prompt_file
from tgis_cli.clients.parameters import Parameters
from tgis_server.errors import UsageError
from tgis_server.wire import generation_pb2 as pb

SHAPE = CallShape(Parameters())


def read_all(path: Path | str, count: int) -> list[pb.SingleGenerationRequest]:
    with open_prompt_file(str(path), SHAPE) as file:
        return [pb.SingleGenerationRequest.FromString(file.make_call(index).body) for index in range(count)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refuse(path: Path) -> str:
    with pytest.raises(UsageError) as caught, open_prompt_file(str(path), SHAPE):
        pass
    return str(caught.value)


def test_each_line_is_a_call_and_the_first_follows_the_last(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "one"}', "", '{"text": "zwei ü"}')

    assert [request.request.text for request in read_all(path, 3)] == ["one", "zwei ü", "one"]


def test_lines_have_lengths_and_parameters_of_their_own(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "a", "output_tokens": 7, "top_k": 3}', '{"text": "b"}')

    first, second = (request.params for request in read_all(path, 2))

    assert (first.stopping.min_new_tokens, first.stopping.max_new_tokens, first.sampling.top_k) == (7, 7, 3)
    assert second.stopping.max_new_tokens == 0


def test_the_expected_tokens_are_known_only_where_they_are_forced(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "a", "output_tokens": 7}', '{"text": "b", "max_new_tokens": 9}')

    with open_prompt_file(str(path), SHAPE) as file:
        assert [file.make_call(index).output_tokens for index in (0, 1)] == [7, 0]


def test_start_offsets_make_a_trace(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "a", "start_s": 0}', '{"text": "b", "start_s": 1.5}')

    with open_prompt_file(str(path), SHAPE) as file:
        assert (file.is_trace, list(file.starts), file.num_distinct) == (True, [0.0, 1.5], 2)


def test_it_is_read_again_by_the_processes_that_send(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "a"}', '{"text": "b"}')

    with open_prompt_file(str(path), SHAPE) as file:
        file.make_call(0)
        copy: PromptFile = pickle.loads(pickle.dumps(file))

        assert copy.make_call(1) == file.make_call(1)
        copy.close()


def test_a_pipe_is_read_once(tmp_path: Path):
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"text": "from a pipe"}\n')
    os.close(write_end)

    assert [request.request.text for request in read_all(f"/dev/fd/{read_end}", 2)] == ["from a pipe"] * 2

    os.close(read_end)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "line 2: it is not valid JSON"),
        ("[1]", "line 2: it is not a JSON object"),
        ('{"prompt": "a"}', 'line 2: it has no "text"'),
        ('{"text": "a", "output_tokens": 0}', 'line 2: its "output_tokens" is not an integer from 1 to 4294967295'),
        ('{"text": "a", "output_tokens": ' + 5000 * "9" + "}", "line 2: it has a number with too many digits."),
        ('{"text": "a", "start_s": 1e999}', 'line 2: its "start_s" has a number that is too large'),
        ('{"text": "a", "top_k": -1}', "line 2: top_k is -1"),
        ('{"text": "a", "start_s": 1}', 'line 2: some lines have "start_s" and others do not'),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, reason: str):
    assert reason in refuse(write(tmp_path / "p.jsonl", '{"text": "good"}', line))


def test_a_trace_must_be_sorted(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", '{"text": "a", "start_s": 2}', '{"text": "b", "start_s": 1}')

    assert 'line 2: its "start_s" is before that of an earlier line' in refuse(path)


@pytest.mark.parametrize(("speed", "start_s"), [(1.0, 86_401), (0.001, 87)])
def test_a_trace_lasts_at_most_a_day(tmp_path: Path, speed: float, start_s: int):
    path = write(tmp_path / "p.jsonl", '{"text": "a", "start_s": 0}', f'{{"text": "b", "start_s": {start_s}}}')

    with (
        pytest.raises(UsageError, match='line 2: its "start_s" is more than a day after the start'),
        open_prompt_file(str(path), SHAPE, speed),
    ):
        pass


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path):
    assert "cannot be read: No such file" in refuse(tmp_path / "none.jsonl")
    assert "is empty: write a JSON object per line" in refuse(write(tmp_path / "empty.jsonl"))
