"""The servers of a comparison in alternating rounds: they run already, or are started for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tgis_cli.bench.ab import (
    METRIC,
    Comparison,
    RoundsEnded,
    compare_ab,
    describe_progress,
    describe_verdict,
    make_figures,
)
from tgis_cli.bench.decided import decide, private_run_dir
from tgis_cli.bench.fingerprint import make_fingerprint
from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.load.figures import INTENDED, LATENCIES, to_figures
from tgis_cli.bench.load.levels import FixedLevels, Plan
from tgis_cli.bench.load.live import Live
from tgis_cli.bench.load.options import ARRIVALS, ROUND_S, ROUND_STREAMS, LoadOptions
from tgis_cli.bench.load.prompt_file import PromptFile
from tgis_cli.bench.load.run import LoadRun, OpenGenerator, choose_workers, make_feed, open_prompts, open_workers
from tgis_cli.bench.load.target import Target, describe_model, describe_server, open_target
from tgis_cli.bench.result import PERCENTILES, Figure, Result
from tgis_cli.clients.connection import Connection
from tgis_cli.clients.grpc_client import Client
from tgis_cli.clients.parameter_table import as_flag
from tgis_cli.own_server.launch_line import read_launch_line
from tgis_cli.own_server.launcher import make_child_environment
from tgis_cli.terminal.fixed_in_run import ALWAYS
from tgis_cli.terminal.sentences import print_sentence
from tgis_server.errors import TgisError, Unavailable, UsageError
from tgis_server.options import load_config
from tgis_server.words.close_words import did_you_mean
from tgis_server.words.sizes import format_count

# An occasional disturbed round is noise, which the interval covers; many of them mean that the generator is measured.
MAX_DOUBTFUL_SHARE = 0.2
METRICS = (
    *(METRIC, "total_tokens_per_s", "requests_per_s"),
    *(f"{latency}_p{percent}" for latency in (*LATENCIES, *INTENDED) for percent in PERCENTILES),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two configurations."""

    letter: str  # A or B
    launch: str | None = None  # options of `tgis launch`
    url: str | None = None  # of a running server
    python: str | None = None  # interpreter of the installation that is launched, if not this one

    @classmethod
    def from_flags(cls, letter: str, launch: str | None, url: str | None, python: str | None) -> Side:
        """
        Raises:
            UsageError: there is nothing to measure, too much, or no such interpreter.
        """
        flag = f"--{letter.lower()}"
        if url is None and launch is None and python is None:
            raise UsageError(f'Nothing says what {letter} is: give {flag} "MODEL ...", {flag}-url or {flag}-python.')
        if url is not None and (launch is not None or python is not None):
            raise UsageError(f"{flag}-url names a running server: leave out {flag} and {flag}-python.")
        if python is not None and shutil.which(python) is None:
            raise UsageError(f"{flag}-python is {python}, which is not a program that can be run.")
        if launch is not None:
            read_launch_line(launch, flag)
        return cls(letter, None if url is not None else launch or "", url, python)

    @property
    def title(self) -> str:
        """``A: org/model --num-shard 2``."""
        installation = f" with {self.python}" if self.python else ""
        return f"{self.letter}: {self.url or self.launch or 'the demo model'}{installation}"

    @property
    def _connection(self) -> Connection:
        return Connection(url=self.url, url_flag=f"--{self.letter.lower()}-url")

    @property
    def config_file(self) -> Path | None:
        """The configuration file that the server to start reads."""
        return read_launch_line(self.launch, f"--{self.letter.lower()}").config_file if self.launch else None

    def check(self, environ: Mapping[str, str]) -> None:
        """Check that the server can be reached or started. What another installation can start is not known here.

        Raises:
            TgisError: it cannot; the sentence says of which side.
        """
        with self._named():
            if self.url is not None:
                with Client.connect(self._connection):
                    return
            if self.python is None:
                options = read_launch_line(self.launch or "", f"--{self.letter.lower()}")
                flags = {**options.flags, **ALWAYS}
                with private_run_dir() as run_dir:
                    decide(load_config(flags, make_child_environment(environ), options.config_file), environ, run_dir)

    @contextlib.contextmanager
    def open(self, err: TextIO) -> Iterator[Target]:
        """
        Raises:
            TgisError: there is no server, or it could not start; the sentence says of which side.
        """
        with contextlib.ExitStack() as stack:
            with self._named():
                opening = open_target(self._connection, self.launch, None, os.environ, err, python=self.python)
                target = stack.enter_context(opening)
            yield target

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except TgisError as error:
            raise type(error)(f"{self.title}: {error}") from None


class RoundLive(Live):
    """Shows the current round, without a table of earlier ones."""

    letter = ""

    def end_level(self, level: Level) -> None:
        self._level = None

    def _describe(self, now: str) -> str:
        return f"{self.letter}, {now}"


@dataclass(slots=True)
class OpenSide:
    """A side with a running server."""

    side: Side
    run: LoadRun
    plan: Plan

    def measure(self, num_sent: int) -> Level:
        """One round.

        Args:
            num_sent: prompts of a file that this round is to skip, at least, because earlier rounds have sent them.

        Raises:
            RoundsEnded: it was ended early.
            Unavailable: no request was completed.
        """
        if not self.run.levels:
            self.run.warm_up(self.plan)
        if not self.run.is_cut:
            self.run.num_sent = max(num_sent, self.run.num_sent)
            self.run.run_level(self.plan)
        if self.run.is_cut:
            raise RoundsEnded
        level = self.run.levels[-1]
        if not level.completed:
            reasons = [f": {status}, {text}" for status, text in level.failure_texts.items()]
            raise Unavailable(f"{self.side.title} completed no request in this round{reasons[0] if reasons else '.'}")
        return level


@dataclass(slots=True)
class AbRun:
    """A comparison in progress."""

    options: LoadOptions
    metric: str
    err: TextIO
    live: RoundLive
    open_generator: OpenGenerator
    plan: Plan  # of each round
    prompts: PromptFile | None
    current: LoadRun | None = None  # of the round that runs
    is_opening: bool = False  # a server starts for one round
    is_cut: bool = False
    figure: Figure | None = None  # of the metric, in the last round
    num_rounds: int = 0
    num_sent: int = 0  # the most prompts that one side has sent; a side that is faster sends more
    num_sent_before: int = 0  # the same at the start of this pair, so that both sides begin with the same prompt
    failure: str = ""  # why it ended early, if not because of the user
    problems: list[str] = field(default_factory=list)  # the first of each round that has some
    model: dict[str, Any] = field(default_factory=dict)
    servers: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        """End it with the pairs that are complete. To be called in a signal handler.

        Raises:
            KeyboardInterrupt: a server is starting, which nothing else ends at once.
        """
        self.is_cut = True
        if self.is_opening:
            raise KeyboardInterrupt
        if self.current is not None:
            self.current.stop()

    @contextlib.contextmanager
    def open(self, side: Side) -> Iterator[OpenSide]:
        self.live.say(f"{side.letter}, starting")
        with side.open(self.err) as target:
            feed = self.prompts or make_feed(self.options, target)
            with self.open_generator(target, feed, self.options.workers or choose_workers(self.options)) as generator:
                self.model = self.model or describe_model(target)
                self.servers[side.letter] = describe_server(target)
                yield OpenSide(side, LoadRun(self.options, target, feed, self.live, generator), self.plan)

    def open_and_measure(self, side: Side) -> float:
        """A round on a server of its own."""
        if self.is_cut:
            raise RoundsEnded
        with contextlib.ExitStack() as stack:
            self.is_opening = True
            try:
                opened = stack.enter_context(self.open(side))
            except KeyboardInterrupt:
                if not self.is_cut:
                    raise
                raise RoundsEnded from None
            finally:
                self.is_opening = False
            return self.measure(opened)

    def measure(self, opened: OpenSide) -> float:
        """
        Raises:
            RoundsEnded: the comparison was ended early.
            Unavailable: no request was completed.
            UsageError: a round has too few requests for the metric.
        """
        if self.is_cut:
            raise RoundsEnded
        if self.num_rounds % 2 == 0:
            self.num_sent_before = self.num_sent
        self.current, self.live.letter = opened.run, opened.side.letter
        try:
            level = opened.measure(self.num_sent_before)
        except RoundsEnded:
            self.is_cut = True
            if opened.run.problems:
                self.failure = f"{opened.side.title}: {opened.run.problems[0]}"
            raise
        finally:
            self.current = None
        self.num_sent = max(self.num_sent, opened.run.num_sent)
        self.num_rounds += 1
        self.problems += [f"{opened.side.letter}: {problem}" for problem in level.problems[:1]]
        figure = next((each for each in to_figures(level) if each.name == self.metric), None)
        if figure is None:
            raise UsageError(
                f"A round of {format_count(level.completed, 'request')} has no {self.metric}: make rounds longer with "
                "--duration, or choose another --metric."
            )
        self.figure = figure
        return figure.estimate.value


def run_ab(
    options: LoadOptions,
    sides: tuple[Side, Side],
    *,
    metric: str,
    max_pairs: int,
    equal_within: float,
    restarts: bool,
    err: TextIO,
    open_generator: OpenGenerator = open_workers,
    on_start: Callable[[AbRun], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Result:
    """Measure both sides in alternating rounds.

    Args:
        restarts: a server runs only during its rounds, instead of all the time.
        on_start: a context within which the rounds run, such as one in which signals stop them.

    Raises:
        TgisError: a server cannot be reached or started, does not allow what the options ask for, or went away.
    """
    check_metric(metric)
    plan, options = choose_round(options)
    live = RoundLive(err, os.environ)

    def tell(comparison: Comparison) -> None:
        live.clear()
        print_sentence(describe_progress(comparison), err)

    with contextlib.ExitStack() as stack:
        prompts = stack.enter_context(open_prompts(options))
        if prompts is not None and prompts.is_trace:
            raise UsageError(f'`tgis bench ab` replays no traces: leave "start_s" out of {options.prompts}.')
        stack.callback(live.clear)
        for side in sides:  # before the first start, which may take minutes
            live.say(f"{side.letter}, checking")
            side.check(os.environ)
        run = AbRun(options, metric, err, live, open_generator, plan, prompts)
        if restarts:
            measures = [partial(run.open_and_measure, side) for side in sides]
        else:
            measures = [partial(run.measure, stack.enter_context(run.open(side))) for side in sides]
        stack.enter_context(on_start(run))
        comparison = compare_ab(*measures, max_pairs=max_pairs, equal_within=equal_within, on_pair=tell)
    return make_result(run, sides, comparison)


def check_metric(metric: str) -> None:
    """
    Raises:
        UsageError: no round has such a figure.
    """
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS) or "Use output_tokens_per_s, ttft_p50, itl_p50 or e2e_p95, for example."
        raise UsageError(f"--metric {metric} is unknown. {hint}")


def choose_round(options: LoadOptions) -> tuple[Plan, LoadOptions]:
    """The level of each round, and options with which it is short unless they say otherwise.

    Raises:
        UsageError: the options are of several levels.
    """
    strategy, given = options.strategy, next((as_flag(name) for name in ARRIVALS if name in options.given), "")
    if not given:
        strategy = FixedLevels((Plan(concurrency=ROUND_STREAMS),))
    if not isinstance(strategy, FixedLevels) or len(strategy.plans) != 1:
        raise UsageError(
            f"A round has one level, but {given} asks for several: give one number with --concurrency or --rate."
        )
    pacing = options.pacing
    if "duration" not in options.given and "requests" not in options.given:
        pacing = dataclasses.replace(pacing, max_s=ROUND_S)
    return strategy.plans[0], dataclasses.replace(options, strategy=strategy, pacing=pacing)


def make_result(run: AbRun, sides: tuple[Side, Side], comparison: Comparison) -> Result:
    figure = run.figure or Figure("", run.metric, "", "", comparison.ratio)
    titles = [side.title for side in sides]
    doubts = describe_doubts(run)
    is_doubtful = len(run.problems) > MAX_DOUBTFUL_SHARE * run.num_rounds
    return Result(
        kind="ab",
        options=dict(run.options.given) | {"seed": run.options.seed, "salt": run.options.salt},
        shape=run.options.describe_shape(run.prompts.digest if run.prompts else "") | {"level": run.plan.title},
        fingerprint=make_fingerprint(os.environ, model=run.model, server=run.servers, run=dict(run.options.given)),
        figures=make_figures(comparison, titles, run.metric, figure.unit, figure.better),
        problems=[*filter(None, [run.failure]), *(doubts if is_doubtful else [])],
        notes=[*describe_verdict(comparison, run.metric, figure.better), *([] if is_doubtful else doubts)],
        is_cut=run.is_cut,
        detail={
            "verdict": comparison.verdict,
            "metric": run.metric,
            "equal_within": comparison.equal_within,
            "max_pairs": comparison.max_pairs,
            "values_a": comparison.values_a,
            "values_b": comparison.values_b,
            "noise": comparison.noise,
            "smallest_difference": comparison.smallest_difference,
        },
    )


def describe_doubts(run: AbRun) -> list[str]:
    """A sentence on the rounds that cannot be trusted, if there are any."""
    if not run.problems:
        return []
    num_rounds = format_count(run.num_rounds, "round")
    return [f"{len(run.problems)} of {num_rounds} cannot be trusted. The last problem, on side {run.problems[-1]}"]
