"""The prompt loop with scripted lines, and a server that echoes its requests."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tgis_cli.clients.address import Address
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter
from tgis_cli.clients.prompt_history import PromptHistory
from tgis_cli.clients.prompt_loop import Link, PromptLoop
from tgis_cli.terminal.line_input import LineCanceled
from tgis_server.errors import GroupFailed, InvalidRequest, Unavailable
from tgis_server.wire import generation_pb2 as pb

ANSWER = " a time"
ADDRESS = Address("192.0.2.1", 8033, is_tls=False, source="--url")


class FakeClient:
    """Records requests, and fails on demand."""

    address = ADDRESS

    def __init__(self) -> None:
        self.requests: list[pb.SingleGenerationRequest] = []
        self.error: Exception | None = None
        self.begins = False  # before it fails

    def model_info(self) -> pb.ModelInfoResponse:
        return pb.ModelInfoResponse(max_sequence_length=512, max_new_tokens=128)

    def generate_stream(self, request: pb.SingleGenerationRequest) -> Iterator[pb.GenerationResponse]:
        self.requests.append(request)
        if self.error is not None:
            if self.begins:
                yield pb.GenerationResponse(text=" a", generated_token_count=1)
            raise self.error
        yield pb.GenerationResponse(text=ANSWER, generated_token_count=2, stop_reason=pb.EOS_TOKEN)

    @property
    def texts(self) -> list[str]:
        return [request.request.text for request in self.requests]


class FakeConnector:
    """Records what happens to the connection; a test says when the server is back."""

    def __init__(self, client: FakeClient) -> None:
        self.client = client
        self.is_back = False
        self.is_gone_for_good = False

    @contextmanager
    def reconnect(self) -> Iterator[FakeClient]:
        if not self.is_back:
            raise Unavailable("No server at 192.0.2.1:8033.")
        self.client.error = None
        yield self.client

    def check(self) -> None:
        if self.is_gone_for_good:
            raise GroupFailed("shard-0 was killed by SIGKILL.")


class ScriptedLines:
    """Types a script: texts, exceptions to raise, and things to do before the next line."""

    def __init__(self, script: list[str | Exception | Callable[[], object]]) -> None:
        self._script = script
        self.remembered: list[str] = []

    @contextmanager
    def heeding_ctrl_c(self) -> Iterator[None]:
        yield

    def read(self, prompt: str) -> str:
        while self._script:
            entry = self._script.pop(0)
            if isinstance(entry, Exception):
                raise entry
            if isinstance(entry, str):
                return entry
            entry()
        raise EOFError

    def remember(self, entry: str) -> None:
        self.remembered.append(entry)


@dataclasses.dataclass
class Session:
    """A loop with its fakes."""

    client: FakeClient
    connector: FakeConnector
    shown: str = ""
    lines: ScriptedLines | None = None

    @classmethod
    def make(cls) -> Session:
        client = FakeClient()
        return cls(client, FakeConnector(client))

    def run(self, *script: Any, parameters: Parameters | None = None, width: int = 80) -> Session:
        out = io.StringIO()
        presenter = Presenter(
            out, out, is_for_people=True, wraps=False, has_color=False, has_spinner=False, has_last_line=True
        )
        self.lines = ScriptedLines(list(script))
        link = Link(self.client, self.connector)
        try:
            with link:
                PromptLoop(link, parameters or Parameters(), presenter, self.lines, PromptHistory(None)).run()
        finally:
            self.shown = out.getvalue()
        return self


@pytest.fixture
def session() -> Session:
    return Session.make()


def test_the_loop_names_the_server_and_completes_each_line_until_the_end_of_input(session: Session):
    session.run("Once upon", "", "  Indented")

    assert session.shown.startswith("The model at 192.0.2.1:8033. Each line is a text to complete; /help lists the")
    assert session.client.texts == ["Once upon", "  Indented"]
    assert "Once upon a time\n" in session.shown
    assert session.lines.remembered == ["Once upon", "  Indented"]


@pytest.mark.parametrize("line", ["/bye", "/bye now"])
def test_bye_leaves_before_later_lines(session: Session, line: str):
    assert session.run(line, "Once").client.texts == []


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["//etc"], "/etc"),
        (['"""Once', "upon", 'a time"""'], "Once\nupon\na time"),
        (['"""', "Once", "", '"""  '], "Once\n"),
        (['"""Once"""'], "Once"),
        (['"""Once\nupon"""'], "Once\nupon"),
        (["pasted\n\ttext with \x1b[2J"], "pasted\n\ttext with \x1b[2J"),
    ],
)
def test_texts_arrive_as_they_were_meant(session: Session, lines: list[str], text: str):
    session.run(*lines)

    assert session.client.texts == [text]
    assert "\x1b" not in session.shown


def test_continue_goes_on_from_text_and_answer_and_retry_repeats_the_request(session: Session):
    session.run("Once upon", "/continue", "/retry", "Then", "/continue")

    assert session.client.texts == [
        "Once upon",
        "Once upon a time",
        "Once upon a time",
        "Then",
        "Then a time",
    ]
    assert session.shown.count("because it is greedy: /set temperature") == 1


def test_a_retry_with_other_parameters_is_not_said_to_give_the_same_answer(session: Session):
    session.run("Once upon", "/set stop .", "/retry")

    assert "because it is greedy" not in session.shown


def test_a_refused_text_can_be_retried(session: Session):
    session.client.error = InvalidRequest("input tokens (700) plus prefix length (0) must be < 512")

    session.run("Once", lambda: setattr(session.client, "error", None), "/retry", "/continue")

    assert session.client.texts == ["Once", "Once", "Once a time"]
    assert "The text has 700 tokens" in session.shown


def test_settings_apply_from_the_next_answer_and_can_be_reset(session: Session):
    session.run("/set top_k 5", "/set max-new-tokens=7", "Once", "/set top_k default", "Once more", "/set")

    first, second = (request.params for request in session.client.requests)
    assert (first.method, first.sampling.top_k, first.stopping.max_new_tokens) == (pb.SAMPLE, 5, 7)
    assert (second.method, second.sampling.top_k) == (pb.GREEDY, 0)
    assert "top_k is 5." in session.shown
    assert "top_k is not set." in session.shown
    assert re.search(r"^max_new_tokens 7 +Most tokens", session.shown, re.MULTILINE)


def test_the_parameters_of_the_command_line_apply_with_a_length_for_people_within_the_servers_limit(session: Session):
    session.run("Once", "/show", parameters=Parameters(temperature=0.5))

    (request,) = session.client.requests
    assert (request.params.sampling.temperature, request.params.stopping.max_new_tokens) == (0.5, 128)
    assert "Set: temperature 0.5." in session.shown


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/set topk 5", "No such parameter: topk; did you mean top_k?"),
        ("/set top_p 2", "top_p is 2, but must be a number"),
        ("/set seed", "seed is not set. Make sampling reproducible."),
        ("/cont", "No such command: /cont; did you mean /continue?"),
        ("/retry now", "/retry takes no argument"),
        ("/retry", "Type a text first."),
        ("/continue", "Type a text first."),
        ("bytes \udcff", "The text is not UTF-8"),
    ],
)
def test_mistakes_are_a_sentence_and_the_loop_goes_on(session: Session, line: str, sentence: str):
    session.run(line, "Once")

    assert sentence in session.shown
    assert session.client.texts == ["Once"]


def test_a_length_above_the_servers_limit_is_refused_when_it_is_set(session: Session):
    session.run("/set max_new_tokens 500", "Once")

    assert "max_new_tokens is 500, but this server allows at most 128." in session.shown
    assert session.client.requests[0].params.stopping.max_new_tokens == 128


def test_a_length_of_the_command_line_above_the_servers_limit_names_the_setting(session: Session):
    session.client.error = InvalidRequest("max_new_tokens must be <= 128")

    session.run("Once", parameters=Parameters(max_new_tokens=500))

    assert "max_new_tokens is 500, but this server allows at most 128." in session.shown


def test_ctrl_c_says_how_to_leave_only_if_nothing_was_typed(session: Session):
    session.run(LineCanceled("half a li"), '"""begun', LineCanceled(""), LineCanceled(""), "Once")

    assert session.shown.count("/bye leaves") == 1
    assert session.client.texts == ["Once"]


def test_a_connection_that_broke_after_the_last_answer_is_reopened_silently(session: Session):
    session.client.error = Unavailable("Connection refused")
    session.connector.is_back = True

    session.run("Once")

    assert session.client.texts == ["Once", "Once"]
    assert "Once a time\n" in session.shown
    assert "refused" not in session.shown


def test_a_server_that_goes_away_is_reported_in_one_sentence_and_used_again_once_it_is_back(session: Session):
    session.client.error = Unavailable("Connection refused")

    session.run("Once", "/show", lambda: setattr(session.connector, "is_back", True), "/retry")

    assert session.shown.count("No server at 192.0.2.1:8033.") == 2
    assert "refused" not in session.shown
    assert session.client.texts == ["Once", "Once"]
    assert "Once a time\n" in session.shown


def test_an_interrupted_answer_is_not_requested_again_automatically(session: Session):
    session.client.error, session.client.begins = Unavailable("The connection broke."), True
    session.connector.is_back = True

    session.run("Once", "/retry")

    assert session.client.texts == ["Once", "Once"]
    assert session.shown.count("The connection broke.") == 1


def test_a_server_that_will_not_come_back_ends_the_loop_with_its_reason(session: Session):
    session.client.error = Unavailable("The server is unavailable.")
    session.connector.is_gone_for_good = True

    with pytest.raises(GroupFailed, match="killed by SIGKILL"):
        session.run("Once", "Twice")

    assert session.client.texts == ["Once"]


def test_help_and_parameters_fit_80_columns_without_broken_words(session: Session):
    session.run("/help", "/set stop " + "x" * 70, "/set")

    assert max(map(len, session.shown.splitlines())) <= 80
    assert "/set NAME VALUE" in session.shown
