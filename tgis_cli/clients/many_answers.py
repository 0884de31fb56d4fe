"""Several answers: to the lines of a file, or to one prompt. Requests run in parallel; output is in order.

In a pipe each answer is a line; on a terminal each has a heading. A failed answer is reported and does not stop the
others.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tgis_cli.clients.answer import Answer, SomeFailed, format_latency, to_json_line
from tgis_cli.clients.in_order import InOrder
from tgis_cli.clients.parameters import Parameters
from tgis_cli.clients.presenter import Presenter
from tgis_cli.clients.prompt_file import Prompt
from tgis_cli.terminal.progress import format_seconds
from tgis_cli.terminal.quiet_input import quiet_input
from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.status_line import StatusLine
from tgis_server.errors import RequestError, Unavailable
from tgis_server.words.sizes import format_count

if TYPE_CHECKING:
    from tgis_server.wire import generation_pb2 as pb

# Starts a call, as `Client.start_answer` does.
Start = Callable[["pb.SingleGenerationRequest", Callable[[Answer | RequestError], None]], Callable[[], None]]

MAX_SEED = 2**32  # of seeds drawn here; the server draws below the same limit


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to request."""

    prompt: Prompt
    parameters: Parameters
    number: int | None = None  # among the answers to this prompt, from 1; None: there is only one

    @property
    def name(self) -> str:
        """``line 3``, ``answer 2``, ``line 3, answer 2``."""
        line = [f"line {self.prompt.line}"] if self.prompt.line is not None else []
        return ", ".join(line + ([f"answer {self.number}"] if self.number is not None else []))

    def as_dict(self) -> dict[str, Any]:
        facts = {"line": self.prompt.line, "id": self.prompt.id, "answer": self.number}
        return {name: value for name, value in facts.items() if value is not None}


def make_jobs(
    prompts: Iterable[Prompt], num_answers: int, complete: Callable[[Parameters], Parameters]
) -> Iterator[Job]:
    """A job for each answer. Several answers to one prompt get consecutive seeds, from the given one or a random one.

    Args:
        complete: adds the parameters that depend on the server.
    """
    for prompt in prompts:
        parameters = complete(prompt.parameters)
        if num_answers == 1:
            yield Job(prompt, parameters)
            continue
        seed = random.randrange(MAX_SEED) if parameters.seed is None else parameters.seed  # noqa: S311  no secret
        for index in range(num_answers):
            yield Job(prompt, parameters.with_seed((seed + index) % 2**64), index + 1)


@dataclass(slots=True)
class ManyAnswers:
    """Prints answers in the order of their jobs."""

    presenter: Presenter
    total: int
    as_json: bool = False
    num_done: int = 0
    num_failed: int = 0
    num_input_tokens: int = 0
    num_generated_tokens: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def run(self, jobs: Iterable[Job], start: Start, parallel: int) -> None:
        """
        Raises:
            SomeFailed: at least one answer failed.
            Unavailable: the server is gone.
        """
        status = StatusLine(self.presenter.err, os.environ, elsewhere_every_s=math.inf)

        def start_job(job: Job, on_done: Callable[[Answer | RequestError], None]) -> Callable[[], None]:
            return start(job.parameters.to_request(job.prompt.text), on_done)

        in_order = InOrder(jobs, start_job, parallel, on_tick=lambda: status.show(self.describe_progress))
        has_summary = self.presenter.has_last_line or self.presenter.has_spinner
        try:
            with quiet_input(self.presenter.out):
                for job, result in in_order:
                    status.clear()
                    self.show(job, result)
        except KeyboardInterrupt:
            status.clear()
            if has_summary:
                self.presenter.say(f"{self.num_done} of {self.total} answers, stopped with Ctrl-C")
            raise
        finally:
            status.clear()
        if has_summary:
            self.presenter.say(self.summarize())
        if self.num_failed:
            raise SomeFailed(f"{self.num_failed} of {self.num_done} answers failed.")

    def show(self, job: Job, result: Answer | RequestError) -> None:
        """Print one answer, or report its failure."""
        if isinstance(result, Unavailable):
            raise Unavailable(f"{job.name}: {result}; {self.num_done} of {self.total} answers arrived before that.")
        self.num_done += 1
        if isinstance(result, RequestError):
            self.num_failed += 1
            self.report(job, result)
            return
        self.num_input_tokens += result.input_token_count
        self.num_generated_tokens += result.generated_token_count
        if self.as_json:
            self.print_line(to_json_line(job.as_dict() | result.as_dict()))
        elif self.presenter.is_for_people:
            self.presenter.show_whole(f"{job.name}, {', '.join(result.describe())}", job.prompt.text, result)
        else:
            self.print_line(result.text.replace("\r", "\\r").replace("\n", "\\n"))

    def report(self, job: Job, error: RequestError) -> None:
        """Report a failure: as an object with ``--json``, otherwise as a sentence; in a pipe its line stays empty."""
        if self.as_json:
            self.print_line(to_json_line(job.as_dict() | {"error": str(error)}))
        elif not self.presenter.is_for_people:
            self.print_line("")
        print_sentence(f"tgis: {job.name}: {error}", self.presenter.err)

    def print_line(self, text: str) -> None:
        print(text, file=self.presenter.out, flush=True)

    def describe_progress(self) -> str:
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        spent_s = time.monotonic() - self.started_at
        left_s = spent_s / self.num_done * (self.total - self.num_done) if self.num_done else 0.0
        left = f", {format_seconds(left_s)} left" if left_s else ""
        return f"{self.num_done} of {self.total} answers{failed}, {self.describe_rate()}{left}"

    def describe_rate(self) -> str:
        seconds = time.monotonic() - self.started_at
        return f"{self.num_generated_tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""

    def summarize(self) -> str:
        seconds = format_latency(time.monotonic() - self.started_at)
        return (
            f"{format_count(self.num_done, 'answer')} in {seconds}: {format_count(self.num_input_tokens, 'token')} in, "
            f"{self.num_generated_tokens:,} out, {self.describe_rate()}"
        )
