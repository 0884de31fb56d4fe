"""The servers of a comparison in alternating rounds: running ones, or such as are started for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
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
from tgis_cli.bench.fingerprint import make_fingerprint
from tgis_cli.bench.load.detail import Level
from tgis_cli.bench.load.figures import INTENDED, LATENCIES, to_figures
from tgis_cli.bench.load.levels import FixedLevels, Plan
from tgis_cli.bench.load.live import Live
from tgis_cli.bench.load.options import ARRIVALS, ROUND_S, ROUND_STREAMS, LoadOptions
from tgis_cli.bench.load.run import LoadRun, OpenSender, choose_workers, digest_of, is_trace, open_feed, open_workers
from tgis_cli.bench.load.target import Target, describe_model, describe_server, open_target
from tgis_cli.bench.result import PERCENTILES, Figure, Result
from tgis_cli.clients.connection import Connection
from tgis_cli.own_server.launch_line import read_launch_line
from tgis_cli.terminal.sentences import print_sentence
from tgis_server.errors import TgisError, Unavailable, UsageError
from tgis_server.words.close_words import did_you_mean
from tgis_server.words.sizes import format_count

# A disturbed round now and then is noise, which the interval has in it; if it is the rule, the generator is measured.
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


class RoundLive(Live):
    """Shows the round that runs, and no table of those that are done."""

    letter = ""

    def end_level(self, level: Level) -> None:
        self._level = None

    def _describe(self, now: str) -> str:
        return f"{self.letter}, {now}"


@dataclass(slots=True)
class OpenSide:
    """A side whose server answers."""

    side: Side
    run: LoadRun
    plan: Plan

    def measure(self) -> Level:
        """One round.

        Raises:
            RoundsEnded: it was cut.
            Unavailable: it has no completed call.
        """
        if not self.run.levels:
            self.run.warm_up(self.plan)
        if not self.run.is_cut:
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
    """A comparison as it runs."""

    options: LoadOptions
    metric: str
    err: TextIO
    live: RoundLive
    open_sender: OpenSender
    plan: Plan  # of each round
    current: LoadRun | None = None
    is_cut: bool = False
    figure: Figure | None = None  # of the metric, in the last round
    num_rounds: int = 0
    failure: str = ""  # why it was cut, if not by us
    problems: list[str] = field(default_factory=list)  # the first of each round that has some
    model: dict[str, Any] = field(default_factory=dict)
    prompts_digest: str = ""
    servers: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        """End it with the pairs that are complete."""
        self.is_cut = True
        if self.current is not None:
            self.current.stop()

    @contextlib.contextmanager
    def open(self, side: Side) -> Iterator[OpenSide]:
        self.live.say(f"{side.letter}, starting")
        options = self.options
        with open_side(side, self.err) as target, open_feed(options, target) as feed:
            if is_trace(feed):
                raise UsageError(f'A round is a load of its own, no trace: leave "start_s" out of {options.prompts}.')
            with self.open_sender(target, feed, options.workers or choose_workers(options)) as sender:
                self.prompts_digest = digest_of(feed)
                self.model = self.model or describe_model(target)
                self.servers[side.letter] = describe_server(target)
                yield OpenSide(side, LoadRun(options, target, feed, self.live, sender), self.plan)

    def open_and_measure(self, side: Side) -> float:
        """A round on a server of its own."""
        with self.open(side) as opened:
            return self.measure(opened)

    def measure(self, opened: OpenSide) -> float:
        """
        Raises:
            RoundsEnded: the comparison was cut.
            Unavailable: no call was completed.
            UsageError: the calls of a round are too few for the metric.
        """
        if self.is_cut:
            raise RoundsEnded
        self.current, self.live.letter = opened.run, opened.side.letter
        try:
            level = opened.measure()
        except RoundsEnded:
            self.is_cut = True
            if opened.run.problems:
                self.failure = f"{opened.side.title}: {opened.run.problems[0]}"
            raise
        self.num_rounds += 1
        self.problems += [f"{opened.side.letter}: {problem}" for problem in level.problems[:1]]
        figure = next((each for each in to_figures(level) if each.name == self.metric), None)
        if figure is None:
            raise UsageError(
                f"A round of {format_count(level.completed, 'call')} has no {self.metric}: make rounds longer with "
                "--duration, or choose another --metric."
            )
        self.figure = figure
        return figure.estimate.value


@contextlib.contextmanager
def open_side(side: Side, err: TextIO) -> Iterator[Target]:
    """
    Raises:
        TgisError: there is no server, or it could not start; the sentence says of which side.
    """
    with contextlib.ExitStack() as stack:
        opening = open_target(Connection(url=side.url), side.launch, None, os.environ, err, python=side.python)
        try:
            target = stack.enter_context(opening)
        except TgisError as error:
            raise type(error)(f"{side.title}: {error}") from None
        yield target


def run_ab(
    options: LoadOptions,
    sides: tuple[Side, Side],
    *,
    metric: str,
    max_pairs: int,
    equal_within: float,
    restarts: bool,
    err: TextIO,
    open_sender: OpenSender = open_workers,
    on_start: Callable[[AbRun], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Result:
    """Measure both sides in alternating rounds.

    Args:
        restarts: a server runs only during its rounds, instead of all the time.
        on_start: a context within which the rounds run, such as one in which signals stop them.

    Raises:
        TgisError: the options do not suit a server, it could not start, or is gone.
    """
    check_metric(metric)
    plan, options = choose_round(options)
    run = AbRun(options, metric, err, RoundLive(err, os.environ), open_sender, plan)

    def tell(comparison: Comparison) -> None:
        run.live.clear()
        print_sentence(describe_progress(comparison), err)

    with contextlib.ExitStack() as stack:
        stack.callback(run.live.clear)
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
    strategy = options.strategy
    if not any(name in options.given for name in ARRIVALS):
        strategy = FixedLevels((Plan(concurrency=ROUND_STREAMS),))
    if not isinstance(strategy, FixedLevels) or len(strategy.plans) != 1:
        raise UsageError(
            "A round has one level: give one number with --concurrency or --rate, and leave out --sweep and --goodput."
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
        shape=run.options.describe_shape(run.prompts_digest) | {"level": run.plan.title},
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
    """A sentence, if there is something to say."""
    if not run.problems:
        return []
    num_rounds = format_count(run.num_rounds, "round")
    return [f"{len(run.problems)} of {num_rounds} cannot be trusted. The last problem, on side {run.problems[-1]}"]
