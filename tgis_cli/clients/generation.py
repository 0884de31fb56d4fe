"""``tgis generate``: completes texts and shows the answers."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tgis_cli.clients.answer import collect_answer, to_json_line
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.connector import Connector, RemoteConnector
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.parameter_table import as_flag
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter, interrupted_by_ctrl_c
from tgis_cli.clients.prompts import ON_COMMAND_LINE, read_prompt
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.stop_signals import EXIT_INTERRUPTED, ended_by_signals
from tgis_server.errors import InvalidRequest, TgisError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tgis_cli.clients.prompt_file import Prompt

MAX_PARALLEL = 1024
# The server's errors for an answer and for a text that are too long for the model.
LIMIT = re.compile(r"max_new_tokens must be <= (\d+)")
LENGTH = re.compile(r"input tokens \((\d+)\) plus prefix length \(\d+\) must be < (\d+)")


def generate(
    connection: Connection,
    parameters: Parameters,
    *,
    text: Sequence[str] = (),
    json_: bool = False,
    wait: bool = False,
    wait_timeout: float | None = None,
    verbose: bool = False,
    file: str | None = None,
    parallel: int = 8,
    num_answers: int = 1,
) -> int:
    """Run the command; return its exit code.

    Raises:
        TgisError: some or all texts could not be completed.
    """
    presenter = Presenter.open(os.environ, verbose=verbose)
    wait_s = math.inf if wait and wait_timeout is None else wait_timeout
    generation = Generation(
        RemoteConnector(connection, presenter, wait_s),
        parameters,
        presenter,
        as_json=json_,
        num_answers=num_answers,
        parallel=parallel,
    )
    with ended_by_signals():
        return 0 if generation.run(text, file) else EXIT_INTERRUPTED


@dataclass(frozen=True, slots=True)
class Generation:
    """One run of the command. Its methods return ``False`` if Ctrl-C ended them early."""

    connector: Connector
    parameters: Parameters
    presenter: Presenter
    as_json: bool
    num_answers: int
    parallel: int

    def run(self, words: Sequence[str], file: str | None) -> bool:
        """
        Raises:
            TgisError: some or all texts could not be completed.
        """
        try:
            with interrupted_by_ctrl_c(), self._errors_explained():
                return self.complete_text(words) if file is None else self.complete_file(file, words)
        except KeyboardInterrupt:
            return False

    def complete_text(self, words: Sequence[str]) -> bool:
        """Complete the text from the command line or standard input; without either, ask for texts."""
        self._check(self.parameters, as_flag)
        prompt = read_prompt(words, sys.stdin)
        if prompt is None and (self.as_json or self.num_answers > 1 or not self.presenter.is_for_people):
            raise UsageError(f"No text is given: write it {ON_COMMAND_LINE}, or pipe it in.")
        with self._connect() as client:
            if prompt is None:
                from tgis_cli.clients.prompt_loop import run_prompt_loop

                run_prompt_loop(client, self.parameters, self.presenter, self.connector)
                return True
            if self.num_answers > 1:
                from tgis_cli.clients.prompt_file import Prompt

                self._show_many(client, [Prompt(prompt, self.parameters)], self.num_answers, as_flag)
                return True
            frames = client.generate_stream(self._adapt(self.parameters, client, as_flag).to_request(prompt))
            if not self.as_json:
                return not self.presenter.show(prompt, frames).was_interrupted
            self._print_json(collect_answer(frames).as_dict())
            return True

    def complete_file(self, path: str, words: Sequence[str]) -> bool:
        """Complete each line of a file."""
        from tgis_cli.clients.prompt_file import PromptFile

        if words:
            raise UsageError(f"Both a text and --file {path} are given: leave one out.")
        if self.parameters.wants_tokens and not self.as_json:
            raise UsageError("Tokens of many answers are shown only with --json: add it, or leave --file out.")
        with PromptFile.open(path, self.parameters, self._check) as file, self._connect() as client:
            self._show_many(client, file.prompts(), file.num_prompts * self.num_answers, file.setting)
        return True

    @contextmanager
    def _connect(self) -> Iterator[Client]:
        with ExitStack() as stack:
            with quiet_input(self.presenter.out):  # the server may have to start
                client = stack.enter_context(self.connector.connect())
            yield client

    def _show_many(self, client: Client, prompts: Iterable[Prompt], total: int, setting: Callable[[str], str]) -> None:
        from tgis_cli.clients.many_answers import ManyAnswers, make_jobs

        jobs = make_jobs(prompts, self.num_answers, lambda parameters: self._adapt(parameters, client, setting))
        ManyAnswers(self.presenter, total, as_json=self.as_json).run(jobs, client.start_answer, self.parallel)

    @property
    def _is_for_people(self) -> bool:
        return self.presenter.is_for_people and not self.as_json

    def _check(self, parameters: Parameters, setting: Callable[[str], str]) -> None:
        """
        Args:
            setting: gives the name under which the user sets a parameter.

        Raises:
            UsageError: the parameters contradict the other options, or what is known about the server.
        """
        if self.num_answers > 1 and parameters.temperature == 0:
            raise UsageError(
                f"-n {self.num_answers} and a temperature of 0 would give identical answers: leave one of them out."
            )
        if not self._is_for_people:
            parameters.check_default_length(setting)

    def _adapt(self, parameters: Parameters, client: Client, setting: Callable[[str], str]) -> Parameters:
        """Set a length that suits people on a terminal; elsewhere the server's default applies."""
        return parameters.with_length_for_people(client, setting) if self._is_for_people else parameters

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Explain a server's refusals in terms of this command line."""
        try:
            yield
        except InvalidRequest as error:
            raise explain_refusal(error, self.parameters) from None

    def _print_json(self, facts: dict[str, object]) -> None:
        print(to_json_line(facts), file=self.presenter.out, flush=True)


def explain_refusal(
    error: InvalidRequest, parameters: Parameters, setting: Callable[[str], str] = as_flag
) -> TgisError:
    """A server's refusal in the user's terms. A length above the server's limit is a mistake of the user.

    Args:
        setting: gives the name under which the user sets a parameter.
    """
    limit, length = LIMIT.search(str(error)), LENGTH.search(str(error))
    if length is not None:
        return InvalidRequest(
            f"The text has {length[1]} tokens, but text and answer may have only {length[2]} together: shorten it, or "
            f"keep its end with {setting('truncate_input_tokens')}."
        )
    if limit is None or parameters.max_new_tokens is None:
        return error
    name = setting("max_new_tokens")
    return UsageError(f"{name} is {parameters.max_new_tokens}, but this server allows at most {limit[1]}.")
