"""One load from its options to its result: prompts, warm-up, levels, figures."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from tgis_cli.bench.fingerprint import make_fingerprint
from tgis_cli.bench.load.arrivals import MAX_CALLS
from tgis_cli.bench.load.calls import Arrivals, Feed
from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.detail import Level, LoadDetail
from tgis_cli.bench.load.feed import CallShape, SyntheticFeed
from tgis_cli.bench.load.figures import make_level, name_status, to_figures
from tgis_cli.bench.load.levels import (
    DEFAULT_WARMUP_S,
    DefaultLevels,
    FixedLevels,
    GoodputSearch,
    Outcome,
    Plan,
    find_knee,
)
from tgis_cli.bench.load.live import Live
from tgis_cli.bench.load.notes import describe_goodput, list_notes, list_problems, say_of
from tgis_cli.bench.load.options import ARRIVALS, MAX_WARMUP_BY_DEFAULT, LoadOptions
from tgis_cli.bench.load.orders import Totals
from tgis_cli.bench.load.prompt_file import PromptFile, open_prompt_file
from tgis_cli.bench.load.prompts import Vocabulary
from tgis_cli.bench.load.records import GeneratorHealth, Records
from tgis_cli.bench.load.stop_rules import StopRules
from tgis_cli.bench.load.target import Target, describe_model, describe_server
from tgis_cli.bench.result import Result
from tgis_cli.bench.server_side import MetricsWatch
from tgis_cli.clients.parameter_table import as_flag
from tgis_server.errors import TgisError, UsageError
from tgis_server.words.sizes import format_count

LEVEL_INDEXES = 1 << 32  # indexes of the feed that each level has for itself
RATE_WARMUP = 4  # calls, where the first level is a rate
CALLS_PER_WORKER, STREAMS_PER_WORKER = 500, 256  # per second, and at once: with these a worker has time to spare
SEARCH_WORKERS = 4  # for a load that grows until the server has enough


class LoadGenerator(Protocol):
    """The processes that send calls, such as ``Workers``."""

    def run_level(self, arrivals: Arrivals, on_tick: Callable[[Totals], None]) -> tuple[Records, GeneratorHealth]: ...
    def stop(self) -> None:
        """End the level: what is in flight is cut. It may be called in a signal handler."""


OpenGenerator = Callable[[Target, Feed, int], contextlib.AbstractContextManager[LoadGenerator]]


@dataclass(slots=True)
class LoadRun:
    """A load on one server."""

    options: LoadOptions
    target: Target
    feed: SyntheticFeed | PromptFile
    live: Live
    generator: LoadGenerator
    levels: list[Level] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_cut: bool = False
    num_sent: int = 0

    def run(self) -> None:
        """Warm up, and measure one level after the other."""
        plan = self._choose()
        if plan is not None:
            self.warm_up(plan)
        while plan is not None and not self.is_cut:
            try:
                self.run_level(plan)
            except TgisError as error:
                if not self.levels:
                    raise
                self.problems.append(say_of(plan.title, str(error)))
                self.is_cut = True
            plan = self._choose()

    def stop(self) -> None:
        """End it with what has been measured."""
        self.is_cut = True
        self.generator.stop()

    def _choose(self) -> Plan | None:
        if is_trace(self.feed):
            return None if self.outcomes else Plan()
        return self.options.strategy.choose(self.outcomes)

    def warm_up(self, plan: Plan) -> None:
        """Send the calls that come before the first level."""
        num_calls = self.options.warmup
        if num_calls is None:  # a trace is replayed as it was recorded, from its first call on
            num_calls = 0 if is_trace(self.feed) else min(plan.concurrency or RATE_WARMUP, MAX_WARMUP_BY_DEFAULT)
        if not num_calls or self.is_cut:
            return
        doing = f"Warming up with {format_count(num_calls, 'request')}"
        self.live.say(doing)
        # The last lines of a trace: its first calls would otherwise find their prompts in a prefix cache.
        first_index = -num_calls if is_trace(self.feed) else 0
        at_once = min(num_calls, plan.concurrency or RATE_WARMUP)
        limit_s = None if plan.limit_s is None else DEFAULT_WARMUP_S
        arrivals = Arrivals(concurrency=at_once, max_calls=num_calls, limit_s=limit_s, first_index=first_index)

        def tell(progress: Totals) -> None:
            tokens = format_count(progress.output_tokens, "token")
            self.live.say(f"{doing}: {progress.completed} completed, {tokens}")

        records, _ = self._send(arrivals, tell)
        if limit_s is not None and CUT in records.status and not self.is_cut:
            self.notes.append(f"The warm-up was cut off after {limit_s:g} s, before all its requests had ended.")

    def run_level(self, plan: Plan) -> None:
        """Measure one level."""
        arrivals = self._make_arrivals(plan)
        self.live.start_level(plan, arrivals.max_s, arrivals.max_calls)
        began_at = time.monotonic()
        with MetricsWatch(self.target.metrics) as watch:
            records, health = self._send(arrivals, self.live.tick)
        took_s = time.monotonic() - began_at
        level = make_level(
            records,
            health,
            arrivals,
            plan.title,
            is_streamed=self.options.is_streamed,
            rate=plan.rate,
            is_cut=self.is_cut,
            objectives=self.options.objectives,
            watch=watch,
        )
        self.levels.append(level)
        self.outcomes.append(to_outcome(plan, level, took_s))
        self.notes += [note for note in watch.notes if note not in self.notes]
        self.live.end_level(level)

    def _make_arrivals(self, plan: Plan) -> Arrivals:
        pacing = self.options.pacing
        if isinstance(self.feed, PromptFile):
            first_index = self.num_sent % self.feed.num_distinct
        else:
            first_index = (len(self.levels) + 1) * LEVEL_INDEXES
        if plan.concurrency is not None:
            return pacing.make_closed(plan.concurrency, first_index, plan.limit_s)
        if plan.rate is not None:
            return pacing.make_open(plan.rate, first_index)
        assert isinstance(self.feed, PromptFile), "only a trace has neither streams nor a rate"
        if "duration" not in self.options.given:
            pacing = dataclasses.replace(pacing, max_s=None)
        return pacing.make_trace(self.feed.starts, self.options.speed or 1.0)

    def _send(self, arrivals: Arrivals, on_tick: Callable[[Totals], None]) -> tuple[Records, GeneratorHealth]:
        rules, reason = StopRules(), ""

        def tick(progress: Totals) -> None:
            nonlocal reason
            if not self.is_cut and (reason := rules.find_reason(progress, time.monotonic())):
                self.stop()
            on_tick(progress)

        records, health = self.generator.run_level(arrivals, tick)
        self.num_sent += len(records.index)
        if reason:
            texts = [f" ({name_status(status)}: {text})" for status, text in records.texts.items()]
            self.problems.append(f"The level was stopped early, because {reason}{texts[0] if texts else ''}.")
        elif health.cut_reason:
            self.is_cut = True
            self.problems.append(health.cut_reason)
        return records, health


def is_trace(feed: SyntheticFeed | PromptFile) -> TypeGuard[PromptFile]:
    return isinstance(feed, PromptFile) and feed.is_trace


def to_outcome(plan: Plan, level: Level, took_s: float) -> Outcome:
    e2e = level.latencies.get("e2e")
    median = e2e.percentiles.get("50") if e2e else None
    latency_s = median.value if median else e2e.mean if e2e and e2e.count else math.nan
    return Outcome(
        plan=plan,
        throughput=level.output_tokens_per_s.value,
        latency_s=latency_s,
        failed_share=level.failed / max(1, level.sent),
        objective_share=level.objective_share,
        is_saturated=level.is_saturated,
        took_s=took_s,
        is_short=level.is_short,
    )


# -- what is sent -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_feed(options: LoadOptions, target: Target) -> Iterator[SyntheticFeed | PromptFile]:
    """
    Raises:
        UsageError: the texts cannot be made or read, or are too long for the model.
    """
    with open_prompts(options) as file:
        yield file or make_feed(options, target)


@contextlib.contextmanager
def open_prompts(options: LoadOptions) -> Iterator[PromptFile | None]:
    """The file with the prompts; ``None`` if they are made up.

    Raises:
        UsageError: it cannot be read or used.
    """
    if options.prompts is None:
        yield None
        return
    with open_prompt_file(options.prompts, make_shape(options), options.speed or 1.0) as file:
        check_trace(options, file)
        yield file


def make_feed(options: LoadOptions, target: Target) -> SyntheticFeed:
    """
    Raises:
        UsageError: the server's tokenizer or model does not allow such texts.
    """
    check_lengths(options, target)
    vocabulary = Vocabulary.find(target.client.count_tokens)
    check_prefix(options, vocabulary.num_special)
    lengths = options.inputs, options.outputs
    return SyntheticFeed(make_shape(options), vocabulary, *lengths, options.shared_prefix, options.salt)


def make_shape(options: LoadOptions) -> CallShape:
    return CallShape(options.parameters, options.is_streamed, options.num_inputs, options.seed)


def check_trace(options: LoadOptions, file: PromptFile) -> None:
    """
    Raises:
        UsageError: the file is a trace and the options decide when calls are sent, or the reverse.
    """
    decided = [name for name in ARRIVALS if name in options.given]
    if file.is_trace and decided:
        raise UsageError(
            f"--{decided[0]} and --prompts {options.prompts} both decide when requests are sent: leave out one of "
            'them, or "start_s" in the file.'
        )
    if len(file.starts) > MAX_CALLS and not options.pacing.max_calls:
        raise UsageError(
            f"{options.prompts} has {len(file.starts):,} lines, but a trace may have at most {MAX_CALLS:,}."
        )
    if options.speed is not None and not file.is_trace:
        raise UsageError(f'--speed is for a trace, but the lines of {options.prompts} have no "start_s".')


def check_lengths(options: LoadOptions, target: Target) -> None:
    """
    Raises:
        UsageError: the model cannot have texts that long.
    """
    info = target.client.model_info()
    if options.outputs.high > info.max_new_tokens:
        raise UsageError(
            f"--output-tokens is {options.outputs.text}, but this server allows at most {info.max_new_tokens:,} new "
            "tokens per answer."
        )
    longest = options.inputs.high + options.outputs.high
    if longest > info.max_sequence_length:
        raise UsageError(
            f"--input-tokens {options.inputs.text} and --output-tokens {options.outputs.text} can total {longest:,} "
            f"tokens, but this server allows {info.max_sequence_length:,} for input and output together."
        )


def check_prefix(options: LoadOptions, num_special: int) -> None:
    """
    Args:
        num_special: tokens that the tokenizer adds to each text.

    Raises:
        UsageError: the shortest prompt has no token of its own.
    """
    inputs, prefix = options.inputs, options.shared_prefix
    if inputs.low > num_special + prefix:
        return
    added = f"this tokenizer adds {format_count(num_special, 'special token')} to each text" if num_special else ""
    shared = f"--shared-prefix takes {prefix}" if prefix else ""
    raise UsageError(
        f"--input-tokens is {inputs.text}, but {' and '.join(filter(None, (added, shared)))}: at least "
        f"{num_special + prefix + 1} tokens are needed."
    )


@contextlib.contextmanager
def open_workers(target: Target, feed: Feed, num_workers: int) -> Iterator[LoadGenerator]:
    from tgis_cli.bench.load.workers import Workers

    with Workers.open(target.address, target.files, feed, num_workers) as workers:
        yield workers


# -- the whole --------------------------------------------------------------------------------------------------------


def run_load(
    options: LoadOptions,
    target: Target,
    live: Live,
    *,
    open_generator: OpenGenerator = open_workers,
    on_start: Callable[[LoadRun], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Result:
    """Measure a server.

    Args:
        on_start: a context within which the levels run, such as one in which signals stop them.

    Raises:
        TgisError: the options do not suit the server, or it is gone before the first level.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(live.clear)
        with live.doing("Making prompts"):
            feed = stack.enter_context(open_feed(options, target))
        with live.doing("Examining this machine"):
            fingerprint = make_fingerprint(
                os.environ, model=describe_model(target), server=describe_server(target), run=dict(options.given)
            )
            num_workers = options.workers or choose_workers(options, feed)
            generator = stack.enter_context(open_generator(target, feed, num_workers))
        run = LoadRun(options, target, feed, live, generator)
        with on_start(run):
            run.run()
    return make_result(run, fingerprint)


def measure_generator(options: LoadOptions, of_server: Sequence[str]) -> Result:
    """What the generator itself costs and adds, without a server.

    Args:
        of_server: flags that are given and say which server to measure.

    Raises:
        UsageError: options are given that have no effect then.
    """
    from tgis_cli.bench.self_test import SelfTestOptions, run_self_test

    names = [*(name for name in options.given if name not in ("workers", "duration")), *options.parameters.given()]
    if useless := [*map(as_flag, names), *of_server]:
        raise UsageError(f"--self has a load of its own, so {', '.join(useless)} has no effect: leave it out.")
    seconds = options.pacing.max_s if "duration" in options.given else None
    own = SelfTestOptions(workers=options.workers or 1, **({"seconds": seconds} if seconds else {}))
    return run_self_test(own, make_fingerprint(os.environ, model={}, server={}, run=options.given))


def digest_of(feed: SyntheticFeed | PromptFile) -> str:
    return feed.digest if isinstance(feed, PromptFile) else ""


def choose_workers(options: LoadOptions, feed: SyntheticFeed | PromptFile | None = None) -> int:
    """One process unless the load needs more, and no more than half of the CPUs: the server may need them too."""
    if feed is not None and is_trace(feed):
        need = len(feed.starts) / max(1.0, feed.starts[-1]) * (options.speed or 1.0) / CALLS_PER_WORKER
    elif isinstance(options.strategy, FixedLevels):
        plans = options.strategy.plans
        need = max(
            max((one.rate or 0) / CALLS_PER_WORKER, (one.concurrency or 0) / STREAMS_PER_WORKER) for one in plans
        )
    else:
        need = 1 if isinstance(options.strategy, DefaultLevels) else SEARCH_WORKERS
    return max(1, min(math.ceil(need), len(os.sched_getaffinity(0)) // 2))


def make_result(run: LoadRun, fingerprint: dict[str, Any]) -> Result:
    options = run.options
    levels = run.levels
    if isinstance(options.strategy, GoodputSearch):  # whose order is that of a bisection
        levels = sorted(levels, key=lambda level: level.rate or 0.0)
    knee = find_knee(run.outcomes) if all(outcome.plan.concurrency for outcome in run.outcomes) else None
    return Result(
        kind="load",
        options=dict(options.given) | {"seed": options.seed, "salt": options.salt},
        shape=options.describe_shape(digest_of(run.feed)),
        fingerprint=fingerprint,
        figures=[figure for level in levels for figure in to_figures(level)],
        problems=[*run.problems, *list_problems(run)],
        notes=list(list_notes(run, knee)),
        is_cut=run.is_cut,
        detail=dataclasses.asdict(
            LoadDetail(levels, knee=knee.plan.title if knee else None, goodput=describe_goodput(run))
        ),
    )
