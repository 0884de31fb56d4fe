"""Several answers: what is printed for each, failures, and memory."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from screens import open_terminal
from tgis_cli.clients.answer import Answer, to_json_line, token_as_dict
from tgis_cli.clients.many_answers import Job, ManyAnswers, make_jobs
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter
from tgis_cli.clients.prompt_file import Prompt
from tgis_server.errors import InvalidRequest, RequestError, Unavailable
from tgis_server.wire import generation_pb2 as pb

CAPABLE = {"TERM": "xterm"}


def answer_at_once(
    request: pb.SingleGenerationRequest, on_done: Callable[[Answer | RequestError], None]
) -> Callable[[], None]:
    """A server that shouts: the answer is the text in capitals. It refuses "bad", and is gone at "gone"."""
    text = request.request.text
    errors: dict[str, RequestError] = {"bad": InvalidRequest("too bad"), "gone": Unavailable("it is gone")}
    answer = Answer()
    answer.add_whole(
        pb.GenerationResponse(
            text=text.upper(),
            input_token_count=2,
            generated_token_count=3,
            stop_reason=pb.EOS_TOKEN,
            seed=request.params.sampling.seed,
        )
    )
    on_done(errors.get(text, answer))
    return lambda: None


def to_jobs(texts: list[str], num_answers: int = 1, parameters: Parameters | None = None) -> list[Job]:
    prompts = (Prompt(text, parameters or Parameters(), line=line) for line, text in enumerate(texts, 1))
    return list(make_jobs(prompts, num_answers, lambda given: given))


@dataclass
class Outputs:
    out: io.StringIO = field(default_factory=io.StringIO)
    err: io.StringIO = field(default_factory=io.StringIO)

    def run(self, jobs: list[Job], *, as_json: bool = False) -> list[str]:
        """The lines on stdout."""
        presenter = Presenter.open(CAPABLE, out=self.out, err=self.err)
        ManyAnswers(presenter, len(jobs), as_json=as_json).run(jobs, answer_at_once, parallel=2)
        return self.out.getvalue().splitlines()


def test_in_a_pipe_each_answer_is_a_line():
    assert Outputs().run(to_jobs(["a", "b\nc", "d\r"])) == ["A", r"B\nC", r"D\r"]


def test_a_failed_line_stays_empty_is_named_and_does_not_stop_the_others():
    outputs = Outputs()

    with pytest.raises(RequestError, match=r"^1 of 3 answers failed\.$") as caught:
        outputs.run(to_jobs(["a", "bad", "c"]))

    assert caught.value.exit_code == 1
    assert outputs.out.getvalue().splitlines() == ["A", "", "C"]
    assert outputs.err.getvalue() == "tgis: line 2: too bad\n"


def test_a_server_that_goes_away_ends_the_command_with_the_count_of_answers():
    outputs = Outputs()

    with pytest.raises(Unavailable, match="line 2: it is gone; 1 of 3 answers arrived before that"):
        outputs.run(to_jobs(["a", "gone", "c"]))

    assert outputs.out.getvalue() == "A\n"


def test_as_json_each_answer_has_the_number_of_its_line():
    outputs = Outputs()
    jobs = make_jobs(
        [Prompt("a", Parameters(), 1, {"my": "id"}), Prompt("bad", Parameters(), 2)], 1, lambda given: given
    )

    with pytest.raises(RequestError):
        outputs.run(list(jobs), as_json=True)

    first, second = map(json.loads, outputs.out.getvalue().splitlines())
    assert (first["line"], first["id"], first["text"], first["stop_reason"]) == (1, {"my": "id"}, "A", "EOS_TOKEN")
    assert second == {"line": 2, "error": "too bad"}


def test_json_on_a_terminal_has_no_control_characters_either():
    [line] = Outputs().run(to_jobs(["a\x9b31m\u202e\x7f"]), as_json=True)

    assert r"A\u009b31M\u202e\u007f" in line
    assert json.loads(line)["text"] == "A\x9b31M\u202e\x7f"


def test_several_answers_to_a_prompt_have_consecutive_seeds():
    jobs = to_jobs(["a", "b"], 2, Parameters(seed=2**64 - 1))

    assert [(job.name, job.parameters.seed) for job in jobs] == [
        ("line 1, answer 1", 2**64 - 1),
        ("line 1, answer 2", 0),
        ("line 2, answer 1", 2**64 - 1),
        ("line 2, answer 2", 0),
    ]


def test_several_answers_without_a_seed_are_sampled_with_different_ones():
    first, second = (job.parameters for job in to_jobs(["a"], 2))

    assert first.is_sampling
    assert second.seed == first.seed + 1


def test_on_a_terminal_each_answer_has_a_heading_and_its_prompt():
    with open_terminal(80) as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        jobs = list(make_jobs([Prompt("once", Parameters(seed=5))], 2, lambda given: given))
        ManyAnswers(presenter, 2).run(jobs, answer_at_once, parallel=2)
        screen = terminal.close()

    assert [line for line in screen.lines if line][:4] == [
        "answer 1, 2 tokens in, 3 out, seed 5, ended by itself",
        "onceONCE",
        "answer 2, 2 tokens in, 3 out, seed 6, ended by itself",
        "onceONCE",
    ]
    assert screen.lines[-2].startswith("2 answers in ")


def test_memory_does_not_grow_with_the_number_of_lines():
    text = "x" * 10_000
    prompts = (Prompt(text + str(line), Parameters(), line) for line in range(500))  # 5 MB
    jobs = make_jobs(prompts, 1, lambda given: given)
    presenter = Presenter.open({}, out=open("/dev/null", "w"), err=io.StringIO())  # noqa: SIM115
    tracemalloc.start()

    ManyAnswers(presenter, 500).run(jobs, answer_at_once, parallel=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    presenter.out.close()

    assert peak < 2_000_000


def test_log_probabilities_that_are_not_numbers_are_null_in_json():
    top = [pb.TokenInfo.TopToken(text="b", logprob=-math.inf)]
    token = pb.TokenInfo(text="a", logprob=math.inf, top_tokens=top)

    assert token_as_dict(token) == {"text": "a", "logprob": None, "top_tokens": [{"text": "b", "logprob": None}]}
    with pytest.raises(ValueError, match="JSON"):
        to_json_line({"x": math.nan})
