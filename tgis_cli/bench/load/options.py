"""The options of a load, declared once for all commands that send one, and the load that they describe."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import typer

from tgis_cli.bench.lists import read_list
from tgis_cli.bench.load.amount import check_amount
from tgis_cli.bench.load.arrivals import ArrivalProcess, Pacing
from tgis_cli.bench.load.levels import DEFAULT_STREAMS, DefaultLevels, FixedLevels, GoodputSearch, Plan, Strategy, Sweep
from tgis_cli.bench.load.objectives import Objective, parse_objectives
from tgis_cli.bench.load.shapes import Lengths
from tgis_cli.clients.parameter_table import as_flag
from tgis_cli.clients.parameters import Parameters
from tgis_cli.terminal.callbacks import make_callback
from tgis_cli.terminal.options import complete_from
from tgis_cli.terminal.suggestions import explain_no_choice
from tgis_server.errors import UsageError

SHAPE, ARRIVAL = "Shape", "Arrival"
DEFAULT_INPUTS, DEFAULT_OUTPUTS = "128", "64"
DEFAULT_LEVEL_S = 5.0  # of each level of a run without options
LEVEL_S = 10.0  # of other levels, unless a duration or a number of requests is given
ROUND_STREAMS, ROUND_S = 8, 5.0  # of a round of `tgis bench ab`, unless the options say otherwise
MAX_WARMUP_BY_DEFAULT, MAX_WARMUP = 8, 1000
MAX_STREAMS, MAX_RATE = 4096, 100_000
STREAMS, RATES = "whole numbers of streams above 0, such as 1,8,32", "requests per second above 0, such as 0.5,2,8"
SALT_BITS = 20
# The parameters of `tgis generate` that a load can have; it sets the lengths and the seed of each request itself.
PARAMETERS = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "logprobs", "top_n")
FORMS = "N|A:B|normal:MEAN,DEV"


def option(name: str, kind: Any, panel: str, metavar: str | None, text: str, **more: Any) -> tuple[str, Any]:
    name, _, negative = name.partition("/")
    flags = f"{as_flag(name)}/{as_flag(negative)}" if negative else as_flag(name)
    declared = typer.Option(flags, metavar=metavar, help=text, rich_help_panel=panel, show_default=False, **more)
    return name, Annotated[kind, declared]


OPTIONS: dict[str, Any] = dict(
    (
        option(
            "input_tokens",
            str | None,
            SHAPE,
            FORMS,
            f"Tokens of each prompt. [default: {DEFAULT_INPUTS}]",
        ),
        option(
            "output_tokens",
            str | None,
            SHAPE,
            FORMS,
            f"Tokens of each answer, which is forced to this length. [default: {DEFAULT_OUTPUTS}]",
        ),
        option("shared_prefix", int | None, SHAPE, "N", "The first N input tokens are the same in all prompts.", min=1),
        option(
            "prompts",
            str | None,
            SHAPE,
            "FILE",
            'Send the prompts of this file: on each line, a JSON object with a "text". "output_tokens", "start_s" '
            "(seconds after the start, which makes the file a trace) and parameters as in `tgis generate --file` are "
            "optional.",
        ),
        option(
            "inputs_per_call",
            int | None,
            SHAPE,
            "N",
            "Prompts in each request, which is then unary.",
            min=1,
            max=1024,
        ),
        option("stream/no-stream", bool | None, SHAPE, "", "Whether answers come token by token. [default: yes]"),
        option(
            "seed",
            int | None,
            SHAPE,
            "N",
            "Send the same requests in each run with this seed. [default: only the first words differ, so that the "
            "prefix cache of an earlier run does not help]",
            min=0,
        ),
        option(
            "concurrency",
            str | None,
            ARRIVAL,
            "N,N,...",
            "Closed loop: keep N requests in flight; one level for each N. [default: 1,8,32; without --duration and "
            "--requests, as far as 30 s allow]",
        ),
        option("rate", str | None, ARRIVAL, "X,X,...", "Open loop: send X requests per second; one level for each X."),
        option("sweep", bool, ARRIVAL, "", "Double the streams until throughput stops growing, and find the knee."),
        option(
            "goodput",
            str | None,
            ARRIVAL,
            "LIMITS",
            'Find the highest rate at which 95 % of the requests meet limits such as "ttft<500ms,itl<50ms"; there are '
            "also tpot and e2e.",
        ),
        option(
            "arrival",
            str | None,
            ARRIVAL,
            "|".join(ArrivalProcess),
            "Intervals between the requests of an open loop. [default: poisson]",
            autocompletion=complete_from(ArrivalProcess),
        ),
        option(
            "burstiness",
            float | None,
            ARRIVAL,
            "X",
            "Shape of the gamma distribution of the intervals: below 1, requests come in bursts. [default: 1, Poisson]",
        ),
        option("speed", float | None, ARRIVAL, "X", "Replay a trace X times as fast."),
        option(
            "duration",
            str | None,
            ARRIVAL,
            "SECONDS",
            f"How long each level sends requests. [default: {LEVEL_S:g}; "
            f"{DEFAULT_LEVEL_S:g} without --concurrency, --rate, --sweep and --goodput]",
        ),
        option("requests", int | None, ARRIVAL, "N", "Maximum number of requests per level.", min=1),
        option(
            "warmup",
            int | None,
            ARRIVAL,
            "N",
            "Requests before the first level, which do not count. [default: one per stream, at most "
            f"{MAX_WARMUP_BY_DEFAULT}; none for a trace]",
            min=0,
            max=MAX_WARMUP,
        ),
        option(
            "workers",
            int | None,
            ARRIVAL,
            "N",
            "Processes that send requests. [default: depends on the load]",
            min=1,
            max=64,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """A load, as the options describe it. They do not contradict each other."""

    given: Mapping[str, Any]  # by name
    parameters: Parameters
    inputs: Lengths
    outputs: Lengths
    strategy: Strategy
    pacing: Pacing
    prompts: str | None = None
    shared_prefix: int = 0
    num_inputs: int = 1
    is_streamed: bool = True
    seed: int = 0
    salt: int = 0
    objectives: tuple[Objective, ...] = ()
    speed: float | None = None
    warmup: int | None = None
    workers: int | None = None

    @classmethod
    def from_flags(cls, values: Mapping[str, Any], parameters: Parameters) -> LoadOptions:
        """
        Args:
            values: those of ``OPTIONS``, by name; ``None`` and ``False`` are flags that were not given.
            parameters: those of each call, without lengths.

        Raises:
            UsageError: they cannot be read, or contradict each other.
        """
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        if "stream" in values and values["stream"] is False:
            given["stream"] = False
        given |= read_values(given)
        check_together(given)
        inputs, outputs = (
            Lengths.parse(given.get(name, default), as_flag(name))
            for name, default in (("input_tokens", DEFAULT_INPUTS), ("output_tokens", DEFAULT_OUTPUTS))
        )
        is_streamed = is_stream_wanted(given)
        objectives = parse_objectives(given["goodput"], "--goodput") if "goodput" in given else ()
        if not is_streamed and any(one.metric != "e2e" for one in objectives):
            raise UsageError("Unary requests have no first token and no gaps, so --goodput can limit only e2e.")
        strategy, pacing = choose_strategy(given), make_pacing(given)
        plans = strategy.plans if isinstance(strategy, FixedLevels) else ()
        check_amount([plan.rate for plan in plans if plan.rate is not None], pacing)
        return cls(
            given=given,
            parameters=with_forced_length(parameters, given, outputs),
            inputs=inputs,
            outputs=outputs,
            strategy=strategy,
            pacing=pacing,
            prompts=given.get("prompts"),
            shared_prefix=given.get("shared_prefix", 0),
            num_inputs=given.get("inputs_per_call", 1),
            is_streamed=is_streamed,
            seed=given.get("seed", 0),
            salt=0 if "seed" in given else secrets.randbits(SALT_BITS),
            objectives=objectives,
            speed=read_positive(given, "speed"),
            warmup=given.get("warmup"),
            workers=given.get("workers"),
        )

    def describe_shape(self, digest: str) -> dict[str, Any]:
        """What has to be equal for two results to be comparable, besides the levels.

        Args:
            digest: that of the prompts, if they are from a file.
        """
        lengths = {"prompts": digest} if self.prompts else {"input_tokens": self.inputs.text}
        return lengths | {
            "output_tokens": self.outputs.text if not self.prompts or "output_tokens" in self.given else None,
            "shared_prefix": self.shared_prefix,
            "is_streamed": self.is_streamed,
            "inputs_per_call": self.num_inputs,
            "arrival": str(self.pacing.process),
            "burstiness": self.pacing.burstiness,
            "parameters": self.parameters.given(),
        }


def with_load_options(
    body: Callable[..., None], *, hidden: Collection[str] = (), defaults: Mapping[str, str] | None = None
) -> Callable[..., None]:
    """Make a Typer callback that takes these options, for a body with an argument ``options``.

    It also takes the ``parameters`` that ``with_parameters`` passes.

    Args:
        hidden: names of options that the help does not show, because the command refuses them with a reason.
        defaults: what the help says of options whose defaults differ from those of `tgis bench load`.
    """
    offered = OPTIONS | {name: changed(OPTIONS[name], hidden=True) for name in hidden}
    offered |= {name: with_default(OPTIONS[name], text) for name, text in (defaults or {}).items()}
    signature = inspect.signature(body, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "sweep" else None, annotation=annotation
        )
        for name, annotation in offered.items()
    ]

    def command(*first: Any, parameters: Parameters, **values: Any) -> None:
        raw = {name: values.pop(name) for name in offered}
        body(*first, options=LoadOptions.from_flags(raw, parameters), **values)

    return make_callback(command, body, [*own[:1], *flags, *own[1:]])  # the help has them in this order


def with_default(annotation: Any, default: str) -> Any:
    """An option whose help has another default."""
    _, declared = get_args(annotation)
    return changed(annotation, help=f"{declared.help.partition(' [default:')[0]} [default: {default}]")


def changed(annotation: Any, **facts: Any) -> Any:
    """An option with other attributes."""
    kind, declared = get_args(annotation)
    declared = copy.copy(declared)
    vars(declared).update(facts)
    return Annotated[kind, declared]


ARRIVALS = ("concurrency", "rate", "sweep", "goodput")


def read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are still texts: a duration, such as ``5`` or ``5s``, and the kind of arrivals.

    Raises:
        UsageError: one of them cannot be understood.
    """
    values: dict[str, Any] = {}
    if "duration" in given:
        found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)s?", str(given["duration"]).lower())
        try:
            seconds = float(found[1]) if found else 0.0
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < math.inf:
            raise UsageError(f"--duration is {given['duration']}, but must be a number of seconds above 0, such as 10.")
        values["duration"] = seconds
    if "arrival" in given and given["arrival"] not in list(ArrivalProcess):
        raise UsageError(explain_no_choice("--arrival", given["arrival"], ArrivalProcess))
    return values


def check_together(given: Mapping[str, Any]) -> None:
    """
    Raises:
        UsageError: two options contradict each other, or one has no effect.
    """
    named = [as_flag(name) for name in ARRIVALS if name in given]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} are given, but each decides the levels: leave out all but one.")
    is_open = "rate" in given or "goodput" in given
    for name in ("arrival", "burstiness"):
        if name in given and not is_open:
            raise UsageError(f"{as_flag(name)} is for an open loop: give --rate or --goodput too.")
    if given.get("arrival") == ArrivalProcess.CONSTANT and "burstiness" in given:
        raise UsageError("--burstiness has no effect with --arrival constant: leave one of them out.")
    if "prompts" in given and (name := next((each for each in ("input_tokens", "shared_prefix") if each in given), "")):
        raise UsageError(f"--prompts gives whole prompts, so {as_flag(name)} has no effect: leave one of them out.")
    if "prompts" in given and given.get("inputs_per_call", 1) > 1:
        raise UsageError("--prompts sends one prompt per request: leave out --inputs-per-call.")
    if "speed" in given and "prompts" not in given:
        raise UsageError("--speed is for a trace: give its file with --prompts.")
    if given.get("stream") and given.get("inputs_per_call", 1) > 1:
        raise UsageError("A stream has one prompt: leave out --stream or --inputs-per-call.")


def is_stream_wanted(given: Mapping[str, Any]) -> bool:
    """Several inputs need the unary method, so their number asks for it, unless a stream is asked for too."""
    return bool(given.get("stream", "inputs_per_call" not in given))


def with_forced_length(parameters: Parameters, given: Mapping[str, Any], outputs: Lengths) -> Parameters:
    """The parameters with the length of ``--output-tokens``, for those prompts of a file that have none of their own.

    Raises:
        UsageError: the length varies.
    """
    if "prompts" not in given or "output_tokens" not in given:
        return parameters
    if outputs.low != outputs.high:
        raise UsageError(f"--output-tokens is {outputs.text}, but must be a single number with --prompts.")
    return dataclasses.replace(parameters, max_new_tokens=outputs.low, min_new_tokens=outputs.low)


def choose_strategy(given: Mapping[str, Any]) -> Strategy:
    if "concurrency" in given:
        streams = read_list(given["concurrency"], "--concurrency", int, STREAMS, MAX_STREAMS)
        return FixedLevels(tuple(Plan(concurrency=each) for each in streams))
    if "rate" in given:
        rates = read_list(given["rate"], "--rate", float, RATES, MAX_RATE)
        return FixedLevels(tuple(Plan(rate=each) for each in rates))
    if "sweep" in given:
        return Sweep()
    if "goodput" in given:
        return GoodputSearch(level_s=make_pacing(given).max_s)
    if "duration" in given or "requests" in given:
        return FixedLevels(tuple(Plan(concurrency=number) for number in DEFAULT_STREAMS))
    return DefaultLevels(DEFAULT_LEVEL_S)


def read_positive(given: Mapping[str, Any], name: str) -> float | None:
    """
    Raises:
        UsageError: it is not a positive number.
    """
    value: float | None = given.get(name)
    if value is not None and not 0 < value < math.inf:
        raise UsageError(f"{as_flag(name)} is {value:g}, but must be a finite number above 0.")
    return value


def make_pacing(given: Mapping[str, Any]) -> Pacing:
    max_s: float | None = given.get("duration")
    is_default = not any(name in given for name in ARRIVALS)
    if max_s is None and "requests" not in given:
        max_s = DEFAULT_LEVEL_S if is_default else LEVEL_S
    return Pacing(
        ArrivalProcess(given.get("arrival", ArrivalProcess.POISSON)),
        read_positive(given, "burstiness") or 1.0,
        given.get("requests"),
        max_s,
        given.get("seed", 0),
    )
