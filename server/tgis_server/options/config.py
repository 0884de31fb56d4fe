"""Every launch option, spelled once.

``ServeConfig`` says name, type, default, environment variable, range and help of each option. The command line, the
drop-in launcher, ``tgis config show``, the options table of the docs and the child processes all come from it. Only
:func:`load_config` reads the environment; a child process gets the resolved object (``run.py``) and reads neither
environment nor defaults.

Precedence: flag > environment > config file > default.
"""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tgis_server import failures
from tgis_server.errors import UsageError
from tgis_server.options.faults import Fault
from tgis_server.words.url_credentials import mask_credentials

DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}

FRAMEWORKS = (
    "tgis_native",
    "hf_custom_tp",
    "hf_transformers",
    "hf_accelerate",
    "hf_optimum_bt",
    "hf_optimum_ort",
    "ibm_fms",
    "ds_inference",
)

GROUPS = ("Model", "Devices and memory", "Limits", "Network", "Process", "Rehearsal", "Accepted, without effect")

FALSE_WORDS = frozenset({"n", "no", "f", "false", "off", "0"})


def read_dtype(text: str) -> str:
    return text.removeprefix("torch.")


def read_log_level(text: str) -> str:
    """The level of ``info,tonic=warn``: the original takes filters with a level for each of its own modules."""
    return next((part for part in text.split(",") if "=" not in part), "info")


@dataclass(frozen=True, slots=True)
class Opt:
    """Everything about an option but its name, type and default."""

    help: str
    group: str
    short: str = ""  # one-letter flag
    env: str = ""  # default: the name in upper case
    also_env: str = ""  # another variable, read where the first is not set
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None  # other spellings of choices
    read: Callable[[str], str] | None = None  # leaves the choice of a longer text in lower case
    refusal: str = ""  # what the original says of a value out of range; {} is the value
    unit: str = ""  # "bytes": 512MiB, 2GiB or a number
    takes_value: bool = False  # a boolean spelled --flag true, as the original's launcher has it
    hidden: bool = False  # left out of --help, kept in the docs
    has_credentials: bool = False  # a URL whose user and password are shown and written nowhere
    unset: str = ""  # what happens when it is not given


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The options of ``tgis launch``. ``None`` means: inferred from the model and the machine."""

    # Model
    model_name: Annotated[
        str | None,
        Opt(
            help="Directory, or hub id in the local cache.", group="Model", unset="the demo model (`tgis launch` only)"
        ),
    ] = None
    revision: Annotated[
        str | None, Opt(help="Branch, tag or commit of the model in the cache.", group="Model", unset="main")
    ] = None
    deployment_framework: Annotated[
        str | None,
        Opt(help="Engine, by the original's names.", group="Model", choices=FRAMEWORKS, unset="tgis_native"),
    ] = None
    dtype: Annotated[
        str | None,
        Opt(
            help="Number format of weights and activations.",
            group="Model",
            choices=DTYPES,
            aliases=DTYPE_ALIASES,
            read=read_dtype,
            unset="the checkpoint's on CUDA and on CPUs with bf16 instructions, else float32",
        ),
    ] = None
    dtype_str: Annotated[
        str | None,
        Opt(
            help="Older name of --dtype.",
            group="Model",
            choices=DTYPES,
            aliases=DTYPE_ALIASES,
            read=read_dtype,
            hidden=True,
        ),
    ] = None
    quantize: Annotated[
        str | None,
        Opt(
            help="Refused: no engine of this version loads quantized weights.",
            group="Model",
            choices=("gptq", "bitsandbytes"),
            hidden=True,
        ),
    ] = None

    # Devices and memory
    device: Annotated[
        str,
        Opt(
            help="Where the model runs.", group="Devices and memory", choices=("auto", "cpu", "cuda"), env="TGIS_DEVICE"
        ),
    ] = "auto"
    num_shard: Annotated[
        int | None,
        Opt(
            help="Processes that share the model, one per GPU.",
            group="Devices and memory",
            ge=1,
            unset="the GPUs that CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES names, else 1",
        ),
    ] = None
    num_gpus: Annotated[
        int | None, Opt(help="Older name of --num-shard.", group="Devices and memory", ge=1, hidden=True)
    ] = None
    kv_cache_memory: Annotated[
        int | None,
        Opt(
            help="Memory for keys and values on each shard, such as 2GiB.",
            group="Devices and memory",
            unit="bytes",
            ge=1,
            unset="on CUDA what is free after loading; on a CPU one longest sequence, or more if memory allows",
        ),
    ] = None
    kv_block_size: Annotated[
        int, Opt(help="Tokens per KV block.", group="Devices and memory", ge=1, le=1024, hidden=True)
    ] = 16
    prefix_cache: Annotated[
        bool, Opt(help="Reuse keys and values of prompts that begin alike.", group="Devices and memory")
    ] = True
    cpu_pinning: Annotated[
        bool, Opt(help="Give each shard cores of its own.", group="Devices and memory", hidden=True)
    ] = True
    batch_safety_margin: Annotated[
        int, Opt(help="Percent of free GPU memory held back.", group="Devices and memory", ge=0, le=90)
    ] = 20
    cuda_process_memory_fraction: Annotated[
        float,
        Opt(
            help="Share of each GPU that a shard may use.",
            group="Devices and memory",
            short="c",
            gt=0,
            le=1,
            refusal="cuda_process_memory_fraction must be in range 0 < x <= 1",
        ),
    ] = 1.0

    # Limits
    max_concurrent_requests: Annotated[
        int,
        Opt(
            help="Inputs accepted at a time; more are refused as overload.",
            group="Limits",
            ge=1,
            refusal="max_concurrent_requests must be > 0",
        ),
    ] = 512
    max_sequence_length: Annotated[
        int | None,
        Opt(
            help="Most tokens of input and output together.",
            group="Limits",
            ge=2,
            refusal="max_sequence_length ({}) must be at least 2 (1 input + 1 output)",
            unset="the model's",
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        Opt(
            help="Most tokens that a request may ask for.",
            group="Limits",
            ge=1,
            refusal="max_new_tokens ({}) at least 1",
        ),
    ] = 1024
    max_batch_size: Annotated[int, Opt(help="Most sequences running together.", group="Limits", ge=1)] = 256
    max_batch_tokens: Annotated[
        int | None,
        Opt(
            help="Most tokens computed in one step; longer prompts are prefilled in chunks.",
            group="Limits",
            ge=1,
            unset="8192 on CUDA, 512 on a CPU",
        ),
    ] = None
    target_inter_token_latency: Annotated[
        float,
        Opt(
            help="Longest pause in seconds between two tokens of a running answer; prompts of others are computed in "
            "chunks small enough for it.",
            group="Limits",
            gt=0,
        ),
    ] = 2.0
    tokenization_workers: Annotated[
        int | None,
        Opt(
            help="Threads that tokenize.",
            group="Limits",
            ge=1,
            refusal="tokenization_workers must be > 0",
            unset="CPUs less shards, 1 to 8",
        ),
    ] = None

    # Network
    host: Annotated[str, Opt(help="Address to listen on.", group="Network", env="TGIS_HOST")] = "0.0.0.0"  # noqa: S104  a server
    grpc_port: Annotated[int, Opt(help="gRPC port.", group="Network", short="g", ge=0, le=65535)] = 8033
    port: Annotated[int, Opt(help="HTTP port: /health and /metrics.", group="Network", short="p", ge=0, le=65535)] = (
        3000
    )
    tls_cert_path: Annotated[Path | None, Opt(help="Server certificate, PEM.", group="Network")] = None
    tls_key_path: Annotated[Path | None, Opt(help="Server key, PEM.", group="Network")] = None
    tls_client_ca_cert_path: Annotated[
        Path | None, Opt(help="Demand client certificates on the gRPC port, of this CA, PEM.", group="Network")
    ] = None
    http_tls: Annotated[
        str,
        Opt(
            help="TLS on the HTTP port; mutual demands client certificates too.",
            group="Network",
            choices=("off", "server", "mutual"),
        ),
    ] = "off"
    max_request_bytes: Annotated[
        int,
        Opt(
            help="Largest gRPC request, else OUT_OF_RANGE; a request larger by 4 MiB, or 8 times as large if that is "
            "less, is not received at all.",
            group="Network",
            unit="bytes",
            ge=1,
            le=1 << 30,
        ),
    ] = 4 << 20
    send_timeout: Annotated[
        float,
        Opt(
            help="Seconds after which a client that does not take what is sent to it loses its call.",
            group="Network",
            gt=0,
        ),
    ] = 30.0
    output_special_tokens: Annotated[bool, Opt(help="Keep special tokens in output text.", group="Network")] = False
    default_include_stop_seqs: Annotated[
        bool,
        Opt(
            help="Whether output ends with the stop sequence where a request does not say.",
            group="Network",
            takes_value=True,
        ),
    ] = True

    # Process
    run_dir: Annotated[
        Path | None,
        Opt(
            help="Where the run's own directory (sockets, logs of failures) is made.",
            group="Process",
            env="TGIS_RUN_DIR",
            unset="the temporary directory",
        ),
    ] = None
    shard_uds_path: Annotated[
        str | None,
        Opt(help="Socket of rank r is PATH-r.", group="Process", unset="in the run directory", hidden=True),
    ] = None
    startup_timeout: Annotated[
        float, Opt(help="Seconds without any progress after which a start is given up.", group="Process", gt=0)
    ] = 300.0
    skip_preflight: Annotated[
        bool,
        Opt(help="Start without checking the machine first, where a check is wrong.", group="Process"),
    ] = False
    step_timeout: Annotated[
        float,
        Opt(
            help="Seconds after which a step that does not end counts as hung; ten times what is predicted for it, if "
            "that is more.",
            group="Process",
            gt=0,
        ),
    ] = 60.0
    drain_delay: Annotated[
        float,
        Opt(help="Seconds in which a stopping server still accepts requests.", group="Process", ge=0),
    ] = 0.0
    drain_timeout: Annotated[
        float, Opt(help="Seconds in which a stopping server finishes what it started.", group="Process", ge=0)
    ] = 90.0
    restart: Annotated[
        str,
        Opt(
            help="Whether a group that failed is started again; orchestrators do this themselves.",
            group="Process",
            choices=("none", "on-failure"),
            env="TGIS_RESTART",
        ),
    ] = "none"
    max_restarts: Annotated[
        int,
        Opt(
            help="Restarts in a row; ten minutes of serving clear the count.",
            group="Process",
            ge=1,
            env="TGIS_MAX_RESTARTS",
        ),
    ] = 5
    termination_log: Annotated[
        Path,
        Opt(
            help="Where the cause of a failure is written, if the file can be.",
            group="Process",
            also_env="TERMINATION_LOG_DIR",
            hidden=True,
        ),
    ] = Path("/dev/termination-log")
    json_output: Annotated[bool, Opt(help="Logs as JSON lines.", group="Process")] = False
    log_file: Annotated[
        Path | None,
        Opt(
            help="Append every line of the logs to this file too; SIGHUP reopens it.",
            group="Process",
            env="TGIS_LOG_FILE",
        ),
    ] = None
    otlp_endpoint: Annotated[
        str | None,
        Opt(
            help="Send traces to this OpenTelemetry collector (gRPC), such as http://host:4317.",
            group="Process",
            has_credentials=True,
        ),
    ] = None
    otlp_service_name: Annotated[
        str, Opt(help="Service name in traces.", group="Process", also_env="OTEL_SERVICE_NAME", hidden=True)
    ] = "text-generation-inference.router"
    log_level: Annotated[
        str,
        Opt(
            help="Least level of logs.",
            group="Process",
            choices=("debug", "info", "warning", "error"),
            aliases={"trace": "debug", "warn": "warning", "off": "error"},
            read=read_log_level,
        ),
    ] = "info"

    # Rehearsal
    rehearse: Annotated[
        bool,
        Opt(
            help="Run the whole process tree with a fake engine: no weights, no GPU, made-up answers.",
            group="Rehearsal",
            env="TGIS_REHEARSE",
        ),
    ] = False
    rehearse_step_ms: Annotated[
        float,
        Opt(help="Milliseconds per step of the fake engine.", group="Rehearsal", ge=0, env="TGIS_REHEARSE_STEP_MS"),
    ] = 0.0
    rehearse_attention_ns: Annotated[
        float,
        Opt(
            help="Nanoseconds that a step of the fake engine takes for each token and key that it attends to.",
            group="Rehearsal",
            ge=0,
            env="TGIS_REHEARSE_ATTENTION_NS",
            hidden=True,
        ),
    ] = 0.0
    rehearse_kv_blocks: Annotated[
        int,
        Opt(help="KV blocks of the fake engine.", group="Rehearsal", ge=1, env="TGIS_REHEARSE_KV_BLOCKS", hidden=True),
    ] = 4096
    rehearse_plan_ahead: Annotated[
        bool,
        Opt(
            help="The fake engine plans a step ahead, as a GPU does.",
            group="Rehearsal",
            env="TGIS_REHEARSE_PLAN_AHEAD",
            hidden=True,
        ),
    ] = False
    fault: Annotated[
        str | None,
        Opt(
            help="Provoke a failure, such as shard1:exit@step3 (with --rehearse or --allow-faults only).",
            group="Rehearsal",
            env="TGIS_FAULT",
            hidden=True,
        ),
    ] = None
    allow_faults: Annotated[
        bool,
        Opt(
            help="Accept --fault with a real engine, for tests.",
            group="Rehearsal",
            env="TGIS_ALLOW_FAULTS",
            hidden=True,
        ),
    ] = False

    # Accepted, without effect
    max_waiting_tokens: Annotated[
        int | None,
        Opt(help="Prefill and decode share every step.", group="Accepted, without effect", hidden=True),
    ] = None
    max_prefill_padding: Annotated[
        float | None,
        Opt(
            help="Prompts are not padded.",
            group="Accepted, without effect",
            ge=0,
            le=1,
            refusal="max_prefill_padding ({}) must be a percentage in the range [0.0, 1.0]",
            hidden=True,
        ),
    ] = None
    master_addr: Annotated[
        str | None,
        Opt(help="Shards of one machine meet in the run directory.", group="Accepted, without effect", hidden=True),
    ] = None
    master_port: Annotated[
        int | None,
        Opt(
            help="Shards of one machine meet in the run directory.",
            group="Accepted, without effect",
            ge=0,
            le=65535,
            hidden=True,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the command line, the docs and the parsers see it."""

    name: str
    type: type  # str, int, float, bool or Path
    default: Any
    opt: Opt

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return self.opt.env or self.name.upper()

    def find_variable(self, environ: Mapping[str, str]) -> str | None:
        """The variable that sets this option; blank ones count as not set."""
        return next((name for name in (self.env, self.opt.also_env) if environ.get(name, "").strip()), None)

    def get_shown(self, config: ServeConfig) -> Any:
        """The value as people and files may see it."""
        value = getattr(config, self.name)
        return mask_credentials(value) if value and self.opt.has_credentials else value


@functools.cache
def options() -> tuple[Option, ...]:
    """All options, in the order of the class."""
    hints = typing.get_type_hints(ServeConfig, include_extras=True)
    found = []
    for field in fields(ServeConfig):
        annotated, opt = typing.get_args(hints[field.name])
        members = [t for t in typing.get_args(annotated) if t is not types.NoneType]
        found.append(Option(field.name, members[0] if members else annotated, field.default, opt))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and, for each option, where its value comes from."""

    config: ServeConfig
    origins: dict[str, str]  # "flag --port", "environment PORT", "tgis.toml" or "default"


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None) -> LoadedConfig:
    """Merge flags, environment and config file over the defaults.

    Args:
        flags: option name -> value from the command line; ``None`` = not given.
        environ: the environment; blank values count as not set.
        config_file: TOML with option names as top-level keys (``-`` or ``_``).

    Raises:
        UsageError: a value cannot be parsed, is out of range, or conflicts with another; the text names option, value
            and what is accepted.
    """
    loaded = merge_options(flags, environ, config_file)
    for conflict in find_conflicts(loaded.config):
        raise UsageError(conflict)
    if loaded.config.fault:
        Fault.parse(loaded.config.fault)
    return loaded


def merge_options(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None
) -> LoadedConfig:
    """As ``load_config``, but each option is checked by itself only."""
    from_file = read_config_file(config_file) if config_file else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in options():
        where = ""
        if flags.get(option.name) is not None:
            source, raw = f"flag {option.flag}", flags[option.name]
        elif variable := option.find_variable(environ):
            source, raw = f"environment {variable}", environ[variable].strip()
        elif option.name in from_file:
            source, raw, where = str(config_file), from_file[option.name], f"{option.name} in "
        else:
            values[option.name], origins[option.name] = option.default, "default"
            continue
        values[option.name], origins[option.name] = parse_value(option, raw, where + source), source
    return LoadedConfig(ServeConfig(**values), origins)


def read_config_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file {path} is not valid TOML: {error}.") from error
    known = {option.name for option in options()}
    found = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else " `tgis config show` lists the options."
            raise UsageError(f"Config file {path} has an unknown option {key}.{hint}")
        found[name] = value
    return found


class OutOfRange(ValueError):
    """A number outside its option's range; ``args`` holds it."""


def parse_value(option: Option, raw: Any, source: str) -> Any:
    """Turn a raw value into the option's type and check its range.

    Raises:
        UsageError: it is not what the option takes; out of range with the original's text where that has one.
    """
    try:
        return _convert(option, raw)
    except (ValueError, TypeError, OverflowError) as error:  # a config file may hold lists, dates, 1e400
        problem = failures.WRONG_OPTION.format(source=source, value=str(raw), accepted=describe_accepted(option))
        if isinstance(error, OutOfRange) and option.opt.refusal:
            problem = f"{option.opt.refusal.format(*error.args)}: {source} is {str(raw)!r}."
        if str(raw).startswith("tcp://"):
            problem += (
                " Kubernetes sets such a variable for a Service of that name: set it in the pod, or use "
                f"enableServiceLinks: false, or {option.flag}."
            )
        raise UsageError(problem) from None


def _convert(option: Option, raw: Any) -> Any:
    opt = option.opt
    if option.type is bool:
        return _convert_bool(option, raw)
    if opt.unit == "bytes":
        value: Any = parse_bytes(raw)
    elif option.type in (int, float):
        if isinstance(raw, bool):
            raise ValueError
        value = option.type(raw)
        if isinstance(raw, float) and value != raw:
            raise ValueError  # 1.5 for an integer option of a config file
    else:
        value = option.type(raw)
    if opt.choices:
        value = opt.read(value.lower()) if opt.read else value.lower()
        value = (opt.aliases or {}).get(value, value)
        if value not in opt.choices:
            raise ValueError
    if isinstance(value, int | float):
        in_range = (
            math.isfinite(value)
            and (opt.ge is None or value >= opt.ge)
            and (opt.gt is None or value > opt.gt)
            and (opt.le is None or value <= opt.le)
        )
        if not in_range:
            raise OutOfRange(value)
    return value


def _convert_bool(option: Option, raw: Any) -> bool:
    """The original's rule: the false words are false and anything else is true, except for options with a value."""
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if option.opt.takes_value:
        if word not in ("true", "false"):
            raise ValueError
        return word == "true"
    return word not in FALSE_WORDS


def parse_bytes(raw: Any) -> int:
    """``2GiB``, ``512MB``, ``1.5g`` or a plain number of bytes."""
    text = str(raw).strip().lower().replace(" ", "")
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    powers = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
    unit = text[len(number) :]
    base = 1000 if unit in ("kb", "mb", "gb", "tb") else 1024
    prefix = unit.removesuffix("b").removesuffix("i")
    if prefix not in powers:
        raise ValueError(raw)
    return int(float(number) * base ** powers[prefix])


def describe_accepted(option: Option) -> str:
    """What an option takes, in words: used by errors, ``--help`` and the docs."""
    opt = option.opt
    if opt.choices:
        also = f" (also {', '.join(opt.aliases)})" if opt.aliases else ""
        return "one of " + ", ".join(opt.choices) + also
    if option.type is bool:
        return "true or false"
    if opt.unit == "bytes":
        return "a size such as 512MiB or 2GiB" if opt.le is None else f"a size such as 512KiB, at most {opt.le:,} bytes"
    noun = {int: "an integer", float: "a number", str: "a text", Path: "a path"}[option.type]
    low, high = (f"{x:g}" if x is not None else "" for x in (opt.ge if opt.ge is not None else opt.gt, opt.le))
    strictly = "above" if opt.gt is not None else "of at least"
    if low and high:
        return (
            f"{noun} {'above ' if opt.gt is not None else 'from '}{low} {'up ' if opt.gt is not None else ''}to {high}"
        )
    return f"{noun} {strictly} {low}" if low else noun


def find_conflicts(config: ServeConfig) -> Iterator[str]:
    """What cannot be together: rules that span several options."""
    if config.dtype and config.dtype_str and config.dtype != config.dtype_str:
        yield "dtype and dtype_str args both provided with different values"
    if config.num_gpus and config.num_shard and config.num_gpus != config.num_shard:
        yield f"NUM_GPUS and num_shard are set to different values ({config.num_gpus} and {config.num_shard})"
    if (config.tls_cert_path is None) != (config.tls_key_path is None):
        missing = "--tls-key-path" if config.tls_key_path is None else "--tls-cert-path"
        yield f"tls: must provide both cert and key: {missing} is not given"
    if config.tls_client_ca_cert_path and not config.tls_cert_path:
        yield "tls: cannot provide client ca cert without keypair"
    if config.http_tls != "off" and not config.tls_cert_path:
        yield f"--http-tls {config.http_tls} needs --tls-cert-path and --tls-key-path."
    if config.http_tls == "mutual" and not config.tls_client_ca_cert_path:
        yield "--http-tls mutual needs --tls-client-ca-cert-path, the CA of the clients' certificates."
    if config.grpc_port and config.grpc_port == config.port:
        yield f"--grpc-port and --port are both {config.port}: choose two different ports."
    if config.fault and not (config.rehearse or config.allow_faults):
        yield "--fault provokes failures and is accepted only with --rehearse or --allow-faults."
    if config.quantize:
        yield f"--quantize {config.quantize}: no engine of this version loads quantized weights; leave it out."
