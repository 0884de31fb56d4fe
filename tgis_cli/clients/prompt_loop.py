"""The loop of ``tgis generate`` and ``tgis run`` without a text: each line is a text that the model completes.

It runs only on a terminal, and shows answers with the Presenter of both commands. After a failed answer, which is
shown as one sentence, the loop goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from tgis_cli.clients.connector import Connector
from tgis_cli.clients.generation import explain_refusal
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.parameter_table import PARAMETERS, Parameter, find_parameter
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter, closed_at_end
from tgis_cli.clients.prompt_commands import (
    DEFAULT,
    HELP,
    QUOTES,
    SLASH,
    Command,
    complete_word,
    parse_command,
    parse_setting,
)
from tgis_cli.clients.prompt_history import PromptHistory
from tgis_cli.clients.prompts import check_word
from tgis_cli.terminal.capabilities import get_width
from tgis_cli.terminal.line_input import LineCanceled, LineInput
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.stop_signals import ended_by_signals
from tgis_server.errors import InvalidRequest, RequestError, Unavailable, UsageError
from tgis_server.words.control_characters import escape_controls
from tgis_server.words.layout import lay_out, wrap

if TYPE_CHECKING:
    from tgis_cli.runs.servers import RunningServer
    from tgis_server.wire import generation_pb2 as pb

PROMPT, MORE = ">>> ", "... "
MAX_ECHO_CHARS = 60  # shown of a text that an answer continues
LEAVING = "Ctrl-D or /bye leaves."
NOTHING_YET = "Type a text first."
LENGTHS = ("max_new_tokens", "min_new_tokens")  # whose largest value is the server's
SAME_AGAIN = "The answer will be the same, because it is greedy: /set temperature 0.8 samples."


def run_prompt_loop(client: Client, parameters: Parameters, presenter: Presenter, connector: Connector) -> None:
    """Ask for texts and complete them until the user leaves.

    Args:
        client: a connected client; it is replaced if its server goes away.

    Raises:
        Interrupted: SIGTERM or SIGHUP.
        TgisError: the server will not come back.
    """
    history = PromptHistory.find(os.environ)
    lines = LineInput(complete_word, history.load(), is_capable=presenter.wraps)
    with ended_by_signals(), lines.open(), Link(client, connector) as link:
        PromptLoop(link, parameters, presenter, lines, history).run()


class Link:
    """The connection to the server. If it breaks, the next use opens another one."""

    def __init__(self, client: Client, connector: Connector) -> None:
        self.client: Client | None = client
        self._connector = connector
        self._stack = ExitStack()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get_client(self) -> Client:
        """
        Raises:
            TgisError: the server has not come back.
        """
        if self.client is None:
            self._stack.close()
            self.client = self._stack.enter_context(self._connector.reconnect())
        return self.client

    def note_loss(self) -> None:
        """
        Raises:
            TgisError: the server will not come back.
        """
        self.client = None
        self._connector.check()


class PromptLoop:
    """One conversation: the parameters, and the last text with its answer."""

    def __init__(
        self, link: Link, parameters: Parameters, presenter: Presenter, lines: LineInput, history: PromptHistory
    ) -> None:
        self._link = link
        self._parameters = parameters
        self._presenter = replace(presenter, setting=name_setting)
        self._lines = lines
        self._history = history
        self._text = ""  # the text completed last
        self._answer = ""
        self._answered: Parameters | None = None  # those that the answer was generated with
        self._has_begun = False  # whether the newest answer has begun to arrive
        self._actions = {
            "/continue": self._continue,
            "/retry": self._retry,
            "/show": self._show,
            "/help": self._help,
        }

    def run(self) -> None:
        client = self._link.get_client()
        self._tell(f"{describe_server(client)}. Each line is a text to complete; /help lists the commands.")
        while True:
            try:
                line = self._read()
            except EOFError:
                with suppress(OSError):  # the terminal is gone
                    self._write("\n")
                return
            except LineCanceled as cancel:
                self._write("\n")
                if not cancel.text:
                    self._tell(LEAVING)
                continue
            except UnicodeDecodeError:
                self._tell("That line is not valid text: check the encoding of the terminal, and the locale (LANG).")
                continue
            if not line.strip():
                continue
            if not self._obey(line):
                return

    def _read(self) -> str:
        """A line as typed, or a text of several lines with its quotes."""
        line = self._lines.read(PROMPT)
        if line.startswith(QUOTES):
            try:
                while not is_closed(line):
                    line += "\n" + self._lines.read(MORE)
            except (EOFError, LineCanceled):
                raise LineCanceled(line) from None
        if line.strip() and self._history.add(line):
            self._lines.remember(line)
        return line

    def _obey(self, line: str) -> bool:
        """Complete the text, or do what the command says; return whether to go on."""
        try:
            command = parse_command(line)
            if command is not None and command.name == "/bye":
                return False
            if command is not None:
                self._act(command)
            else:
                self._complete(check_word(unquote(line)))
        except Unavailable as error:
            self._tell(str(error))
            self._link.note_loss()
        except InvalidRequest as error:
            self._tell(str(explain_refusal(error, self._parameters, str)))
        except (RequestError, UsageError) as error:
            self._tell(str(error))
        except LineCanceled:
            self._tell("Stopped.")
        return True

    def _act(self, command: Command) -> None:
        if command.name == "/set":
            self._set(command.rest)
        elif command.rest:
            raise UsageError(f"{command.name} takes no argument; type two slashes to begin a text with a slash.")
        else:
            self._actions[command.name]()

    def _complete(self, text: str, echo: str | None = None) -> None:
        """
        Args:
            echo: what is shown of the text before the answer; by default its last lines.
        """
        self._text, self._answer = text, ""
        is_old = self._link.client is not None
        try:
            self._ask(text, text if echo is None else echo)
        except Unavailable:
            if not is_old or self._has_begun:
                raise
            # The connection broke after the last answer: the server may be back, and if not, a new attempt says why.
            self._link.note_loss()
            self._ask(text, text if echo is None else echo)

    def _ask(self, text: str, echo: str) -> None:
        self._has_begun = False
        with quiet_input(self._presenter.out), self._lines.heeding_ctrl_c():  # connecting may take seconds
            client = self._link.get_client()
            parameters = self._parameters.with_length_for_people(client, str)
        frames = client.generate_stream(parameters.to_request(text))
        self._answered = self._parameters
        self._answer = self._presenter.show(echo, self._note_begin(frames)).text

    def _note_begin(self, frames: Iterator[pb.GenerationResponse]) -> Iterator[pb.GenerationResponse]:
        with closed_at_end(frames):
            for frame in frames:
                self._has_begun = True
                yield frame

    # -- commands -------------------------------------------------------------------------------------------------

    def _continue(self) -> None:
        text = self._text + self._answer
        if not text:
            raise UsageError(NOTHING_YET)
        self._complete(text, shorten(text))

    def _retry(self) -> None:
        if not self._text:
            raise UsageError(NOTHING_YET)
        if self._answer and self._parameters == self._answered and not self._parameters.is_sampling:
            self._presenter.say(SAME_AGAIN)
        self._complete(self._text, shorten(self._text))

    def _set(self, rest: str) -> None:
        if not rest:
            self._tell_rows(list_parameters(self._parameters))
            return
        name, value = parse_setting(rest)
        parameter = find_parameter(name)
        if value == DEFAULT:
            self._parameters = self._parameters.updated({parameter.name: None})
        elif value:
            changed = self._parameters.with_setting(parameter.name, value)
            if parameter.name in LENGTHS:
                self._check_length(parameter.name, getattr(changed, parameter.name))
            self._parameters = changed
        state = describe_value(self._parameters, parameter) or "not set"
        self._tell(f"{parameter.name} is {state}." + ("" if value else f" {describe_parameter(parameter)}"))

    def _check_length(self, name: str, num_tokens: int) -> None:
        with self._lines.heeding_ctrl_c():
            limit = self._link.get_client().model_info().max_new_tokens
        if num_tokens > limit:
            raise UsageError(f"{name} is {num_tokens}, but this server allows at most {limit}.")

    def _show(self) -> None:
        with self._lines.heeding_ctrl_c():
            client = self._link.get_client()
            limits = client.model_info()
        given = [f"{name} {describe_value(self._parameters, PARAMETERS[name])}" for name in self._parameters.given()]
        self._tell(f"{describe_server(client)}.")
        self._tell(
            f"A text and its answer may have {limits.max_sequence_length:,} tokens together, an answer "
            f"{limits.max_new_tokens:,}."
        )
        self._tell(f"Set: {', '.join(given) or 'nothing'}.")

    def _help(self) -> None:
        self._tell_rows(list(HELP.items()))

    # -- output ---------------------------------------------------------------------------------------------------

    def _tell(self, sentence: str) -> None:
        """Print a sentence to stdout, among the answers, because the loop runs only on a terminal."""
        lines = wrap(escape_controls(sentence), get_width(self._presenter.out))
        self._write("\n".join(lines) + "\n")

    def _tell_rows(self, rows: list[tuple[str, str]]) -> None:
        for lines in lay_out(rows, get_width(self._presenter.out), indent=0):
            self._write("\n".join(lines) + "\n")

    def _write(self, text: str) -> None:
        self._presenter.out.write(text)
        self._presenter.out.flush()


def name_setting(name: str) -> str:
    """How an answer's last line names a parameter."""
    return f"/set {name}"


def is_closed(text: str) -> bool:
    """Whether quotes that a text begins with are closed at its end."""
    return text.rstrip().endswith(QUOTES) and len(text.strip()) >= 2 * len(QUOTES)


def unquote(line: str) -> str:
    """The text in a line, without its quotes and the line ends next to them, or without an extra slash."""
    if line.startswith(QUOTES):
        return line.rstrip().removeprefix(QUOTES).removesuffix(QUOTES).removeprefix("\n").removesuffix("\n")
    return line[1:] if line.startswith(2 * SLASH) else line


def shorten(text: str) -> str:
    """The end of a text, starting at a word, to show where an answer goes on."""
    line = text.rstrip("\n").rpartition("\n")[2]
    if len(line) <= MAX_ECHO_CHARS:
        return line
    tail = line[-MAX_ECHO_CHARS:]
    return f"... {tail.partition(' ')[2].lstrip() or tail}"


# -- descriptions -----------------------------------------------------------------------------------------------------


def describe_server(client: Client) -> str:
    """``org/model at 127.0.0.1:8033``."""
    server = client.address.server or find_known(client)
    if server is None:
        return f"The model at {client.address.target}"
    label = f" ({server.label})" if server.label else ""
    return f"{server.model}{label} at {client.address.target}"


def find_known(client: Client) -> RunningServer | None:
    """This user's running server at the client's address, for its model's name, which the gRPC API does not give."""
    from tgis_cli.clients.address import THIS_MACHINE, find_running_servers

    address = client.address
    if address.host not in (THIS_MACHINE, "localhost", "::1"):
        return None
    found = [server for server in find_running_servers() if server.is_in_this_network]
    return next((server for server in found if server.grpc_port == address.port), None)


def describe_value(parameters: Parameters, parameter: Parameter) -> str:
    """A parameter's value as it can be typed; empty if it is not set."""
    import json

    value = getattr(parameters, parameter.name)
    if value is None:
        return ""
    if isinstance(value, tuple):
        texts = [json.dumps(text, ensure_ascii=False) for text in value]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def describe_parameter(parameter: Parameter) -> str:
    """A parameter's help, in which other parameters have the names used here."""
    return re.sub(r"--([a-z][a-z-]+)", lambda flag: flag[1].replace("-", "_"), parameter.help)


def list_parameters(parameters: Parameters) -> list[tuple[str, str]]:
    """Rows: a name, its value if it is set, and what it does."""
    return [
        (escape_controls(f"{name} {describe_value(parameters, parameter)}".rstrip()), describe_parameter(parameter))
        for name, parameter in PARAMETERS.items()
    ]
