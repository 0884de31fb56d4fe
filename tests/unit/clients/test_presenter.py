"""Answers on pseudo-terminals, with frames made by hand."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from screens import Screen, Terminal, open_terminal
from tgis_cli.clients.answer import Answer, to_json_line
from tgis_cli.clients.presenter import Presenter
from tgis_server.errors import InvalidRequest, Unavailable
from tgis_server.wire import generation_pb2 as pb

CAPABLE = {"TERM": "xterm"}
ALL_CONTROLS = "".join(
    map(chr, (*range(9), *range(11, 32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), 0x2066, 0x2069))
)


def stream(*texts: str, reason: int = pb.EOS_TOKEN, **last: object) -> Iterator[pb.GenerationResponse]:
    """The frames of an answer, a token each."""
    yield pb.GenerationResponse(input_token_count=4)
    for count, text in enumerate(texts, 1):
        is_last = count == len(texts)
        yield pb.GenerationResponse(
            text=text, generated_token_count=count, **({"stop_reason": reason} | last if is_last else {})
        )


def show(prompt: str, frames: Iterator[pb.GenerationResponse], columns: int = 40, **environ: str) -> Screen:
    """What a terminal shows, stderr included."""
    with open_terminal(columns) as terminal:
        Presenter.open(CAPABLE | environ, out=terminal.stream, err=terminal.stream).show(prompt, frames)
        return terminal.close()


def test_the_answer_follows_the_dimmed_prompt_and_a_dim_last_line_says_how_it_ended():
    screen = show("Once upon", stream(" a", " time", "."), columns=80)

    assert screen.lines[0] == "Once upon a time."
    assert screen.lines[1].startswith("4 tokens in, 3 out · first in ")
    assert screen.lines[1].endswith(" · ended by itself")
    assert screen.lines[2:] == [""]
    assert screen.styled("2") == "Once upon" + screen.lines[1]


@pytest.mark.parametrize(
    ("reason", "fields", "words"),
    [
        (pb.MAX_TOKENS, {}, "cut at 2 tokens: --max-new-tokens"),
        (pb.STOP_SEQUENCE, {"stop_sequence": "\n\x1b"}, r'stopped at "\n\u001b"'),
        (pb.TIME_LIMIT, {}, "cut by the time limit: --time-limit"),
        (pb.TOKEN_LIMIT, {}, "cut because the context is full"),
        (99, {}, "ended for a reason that this version does not know (99)"),
        (pb.MAX_TOKENS, {"seed": 17}, "seed 17 · cut at 2 tokens: --max-new-tokens"),
    ],
)
def test_the_last_line_says_in_words_how_the_answer_ended(reason: int, fields: dict[str, object], words: str):
    screen = show("x", stream("a", "b", reason=reason, **fields), columns=120)

    assert screen.lines[-2].endswith(f" · {words}")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_model_that_prints_control_characters_cannot_change_the_terminal(term: str):
    screen = show(
        f"prompt{ALL_CONTROLS}",
        stream("\x1b", "[2J\x1b]0;title\x07", "\x9b31m", ALL_CONTROLS, "abc\u202e"),
        TERM=term,
    )  # the screen fails on a sequence that is not one of ours

    shown = "".join(screen.lines)
    assert r"\u001b[2J\u001b]0;title\u0007\u009b31m" in shown
    assert r"\u202e" in shown


def test_tabs_and_line_ends_are_shown_as_they_are():
    assert show("x:", stream("\n", "a\tb")).lines[:2] == ["x:", "a       b"]


def test_a_dumb_terminal_gets_no_escape_sequences():
    with open_terminal() as terminal:
        Presenter.open({"TERM": "dumb"}, out=terminal.stream, err=terminal.stream).show("Once", stream(" upon", " a"))
        terminal.close()

    assert "\x1b" not in terminal.raw
    assert terminal.raw.startswith("Once upon a\r\n4 tokens in")


def test_without_colour_words_are_wrapped_but_nothing_is_dimmed():
    screen = show("one two", stream(" three", " four"), columns=12, NO_COLOR="1")

    assert screen.lines[:2] == ["one two", "three four"]
    assert screen.styled("2") == ""


def test_a_pipe_gets_the_bare_text_and_a_line_end():
    out, err = io.StringIO(), io.StringIO()

    Presenter.open(CAPABLE, out=out, err=err).show("prompt", stream("a\x1b[1m", " b\r"))

    assert (out.getvalue(), err.getvalue()) == ("a\x1b[1m b\r\n", "")


def test_verbose_adds_the_last_line_in_a_pipe():
    out, err = io.StringIO(), io.StringIO()

    Presenter.open(CAPABLE, out=out, err=err, verbose=True).show("prompt", stream("a\n"))

    assert out.getvalue() == "a\n"
    assert err.getvalue().startswith("4 tokens in, 1 out")


def test_errors_in_a_file_leave_the_answer_on_the_terminal_without_a_last_line():
    err = io.StringIO()
    with open_terminal() as terminal:
        Presenter.open(CAPABLE, out=terminal.stream, err=err).show("Once", stream(" upon"))
        screen = terminal.close()

    assert (screen.lines, err.getvalue()) == (["Once upon", ""], "")


def test_only_the_end_of_a_long_prompt_is_shown():
    screen = show("".join(f"line {number}\n" for number in range(1000)) + "end", stream("."))

    assert screen.lines[0] == "... line 991"
    assert screen.lines[9] == "end."


@dataclass
class Gate:
    """Frames that wait until a test lets them go on."""

    opened: threading.Event
    closed: bool = False

    def frames(self) -> Iterator[pb.GenerationResponse]:
        try:
            yield pb.GenerationResponse(input_token_count=4)
            assert self.opened.wait(10)
            yield from stream(" answer")
        finally:
            self.closed = True


@contextmanager
def shown_in_a_thread(presenter: Presenter, prompt: str) -> Iterator[Gate]:
    gate = Gate(threading.Event())
    thread = threading.Thread(target=presenter.show, args=(prompt, gate.frames()))
    thread.start()
    try:
        yield gate
    finally:
        gate.opened.set()
        thread.join()


def test_a_spinner_turns_after_the_prompt_until_the_first_token_and_leaves_no_trace():
    with open_terminal() as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        with shown_in_a_thread(presenter, "Once") as gate:
            terminal.wait_for(lambda screen: screen.lines[0].startswith("Once ⠹"))
            gate.opened.set()
        screen = terminal.close()

    assert screen.lines[0] == "Once answer"


def test_a_fast_answer_shows_no_spinner():
    with open_terminal() as terminal:
        Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream).show("Once", stream(" upon"))
        terminal.close()

    assert "⠋" not in terminal.raw


def test_with_the_answer_in_a_file_the_spinner_has_a_line_of_its_own():
    out = io.StringIO()
    with open_terminal() as terminal:
        presenter = Presenter.open(CAPABLE, out=out, err=terminal.stream)
        with shown_in_a_thread(presenter, "Once") as gate:
            terminal.wait_for(lambda screen: screen.lines[0].startswith("⠹"))
            gate.opened.set()
        screen = terminal.close()

    assert (screen.lines, out.getvalue()) == ([""], " answer\n")


def interrupt_after(texts: list[str], gate: Gate) -> Iterator[pb.GenerationResponse]:
    try:
        yield from list(stream(*texts, "unused"))[: len(texts) + 1]
        os.kill(os.getpid(), signal.SIGINT)
        gate.opened.wait(10)  # interrupted
        yield pb.GenerationResponse(text="too late")
    finally:
        gate.closed = True


def test_ctrl_c_ends_the_answer_cancels_the_call_and_leaves_the_text_so_far():
    gate = Gate(threading.Event())
    before = signal.getsignal(signal.SIGINT)
    with open_terminal(80) as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        answer = presenter.show("Once", interrupt_after([" upon", " a"], gate))
        screen = terminal.close()

    assert (answer.text, answer.was_interrupted, gate.closed) == (" upon a", True, True)
    assert screen.lines[0] == "Once upon a"
    assert screen.lines[1].endswith(" · stopped with Ctrl-C")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_in_the_middle_ends_the_line_and_is_passed_on():
    def fail() -> Iterator[pb.GenerationResponse]:
        yield from list(stream(" upon", "unused"))[:2]
        raise Unavailable("gone")

    with open_terminal() as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        with pytest.raises(Unavailable, match="gone"):
            presenter.show("Once", fail())
        screen = terminal.close()

    assert screen.lines == ["Once upon", ""]


def test_only_the_error_of_a_refused_call_is_shown():
    def refuse() -> Iterator[pb.GenerationResponse]:
        raise InvalidRequest("too long")
        yield

    with open_terminal() as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        with pytest.raises(InvalidRequest):
            presenter.show("Once", refuse())
        terminal.close()

    assert terminal.raw == ""


class BrokenPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_cancels_the_call():
    gate = Gate(threading.Event())
    gate.opened.set()

    with pytest.raises(BrokenPipeError):
        Presenter.open(CAPABLE, out=BrokenPipe(), err=io.StringIO()).show("Once", gate.frames())

    assert gate.closed


def token(text: str, probability: float, **alternatives: float) -> pb.TokenInfo:
    tops = [pb.TokenInfo.TopToken(text=name, logprob=math.log(p)) for name, p in alternatives.items()]
    return pb.TokenInfo(text=text, logprob=math.log(probability), rank=1, top_tokens=tops)


def stream_tokens(*frames: tuple[str, pb.TokenInfo]) -> Iterator[pb.GenerationResponse]:
    yield pb.GenerationResponse(input_token_count=4)
    for count, (text, info) in enumerate(frames, 1):
        reason = pb.EOS_TOKEN if count == len(frames) else pb.NOT_FINISHED
        yield pb.GenerationResponse(text=text, tokens=[info], generated_token_count=count, stop_reason=reason)


def test_tokens_are_coloured_by_their_probability_with_a_legend():
    frames = stream_tokens((" sure", token("Ġsure", 0.99)), (" maybe", token("Ġmaybe", 0.2)), ("", token("</s>", 0.6)))

    screen = show("x", frames, columns=80)

    assert screen.lines[:2] == ["x sure maybe", "probability: 90% or more, 50% or more, 10% or more, 1% or more, less"]
    assert screen.styled("32") == " sure90% or more"
    assert screen.styled("33") == " maybe10% or more"


def test_an_answer_that_arrives_whole_is_coloured_like_a_stream():
    answer = Answer()
    tokens = [token("Ġsure", 0.99), token("Ġmaybe", 0.2), token("</s>", 0.6)]
    answer.add_whole(pb.GenerationResponse(text=" sure maybe", tokens=tokens, stop_reason=pb.EOS_TOKEN))

    with open_terminal(80) as terminal:
        presenter = Presenter.open(CAPABLE, out=terminal.stream, err=terminal.stream)
        presenter.show_whole("answer 1", "x", answer)
        screen = terminal.close()

    assert screen.lines[:2] == ["answer 1", "x sure maybe"]
    assert (screen.styled("32"), screen.styled("33")) == (" sure90% or more", " maybe10% or more")


def test_text_that_comes_later_than_its_tokens_is_coloured_by_them():
    frames = stream_tokens(("", token("Ġsure", 0.99)), (" sure maybe", token("Ġmaybe", 0.2)))

    screen = show("x", frames, columns=80)

    assert (screen.styled("32"), screen.styled("33")) == (" sure90% or more", " maybe10% or more")


def test_without_colour_a_table_shows_the_probabilities():
    frames = stream_tokens((" sure", token("Ġsure", 0.99)), (" \x1b", token("Ġ\x1b", 0.2)))

    lines = show("x", frames, columns=80, NO_COLOR="1").lines

    assert lines[0] == r"x sure \u001b"
    assert [line.split() for line in lines[2:6]] == [
        ["Tokens", "of", "the", "answer"],
        ["#", "probability", "rank", "token"],
        ["1", "99.0%", "1", "Ġsure"],
        ["2", "20.0%", "1", r"Ġ\u001b"],
    ]


@pytest.mark.parametrize("logprob", [1000.0, math.inf, -math.inf, math.nan])
def test_log_probabilities_that_no_server_should_send_do_no_harm(logprob: float):
    info = pb.TokenInfo(text="x", logprob=logprob, top_tokens=[pb.TokenInfo.TopToken(text="y", logprob=logprob)])
    answer = Answer()
    answer.add_whole(pb.GenerationResponse(text="x", tokens=[info]))

    for environ in ({}, {"NO_COLOR": "1"}):
        assert "likeliest" in "\n".join(show("x", stream_tokens(("x", info)), columns=80, **environ).lines)
    shown = json.loads(to_json_line(answer.as_dict()), parse_constant=pytest.fail)["tokens"][0]
    expected = logprob if math.isfinite(logprob) else None
    assert (shown["logprob"], shown["top_tokens"][0]["logprob"]) == (expected, expected)


def test_alternatives_are_shown_in_a_table_even_with_colours():
    frames = stream_tokens((" sure", token("Ġsure", 0.75, Ġsure=0.75, Ġno=0.125)))

    lines = show("x", frames, columns=80).lines

    assert ["1", "75.0%", "1", "Ġsure", "Ġsure", "75.0%", "Ġno", "12.5%"] in [line.split() for line in lines]


def test_the_tokens_of_the_text_have_a_table_whose_first_row_has_no_probability():
    def frames() -> Iterator[pb.GenerationResponse]:
        first = pb.TokenInfo(text="<s>", logprob=math.nan)
        yield pb.GenerationResponse(input_token_count=2, input_tokens=[first, token("Ġx", 0.5)])
        yield from stream("y")

    rows = [line.split() for line in show("x", frames(), columns=80).lines]

    assert ["1", "<s>"] in rows
    assert ["2", "50.0%", "1", "Ġx"] in rows


def test_a_window_that_becomes_narrower_does_not_garble_the_next_words():
    def frames(terminal: Terminal) -> Iterator[pb.GenerationResponse]:
        yield from list(stream(" two", "unused"))[:2]
        terminal.resize(20)
        yield from stream(" three four five")

    with open_terminal(40) as terminal:
        Presenter.open(CAPABLE, out=terminal.stream, err=io.StringIO()).show("one", frames(terminal))
        screen = terminal.close()

    assert screen.lines == ["one two three four", "five", ""]
