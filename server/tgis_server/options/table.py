"""The table of launch options: the only definition of their names, types, defaults, ranges and help.

The command line, the drop-in launcher, ``tgis config show``, docs/options.md and the child processes all use it.
"""

from __future__ import annotations

import functools
import types
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tgis_server.options.option import Opt, Option

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

CPU_OPS = ("auto", "reference", "avx2", "avx512", "avx512_bf16")

GROUPS = ("Model", "Devices and memory", "Limits", "Network", "Process", "Rehearsal", "Accepted, without effect")


def read_dtype(text: str) -> str:
    return text.removeprefix("torch.")


def read_log_level(text: str) -> str:
    """The general level of a filter such as ``info,tonic=warn``, which the original accepts."""
    return next((part for part in text.split(",") if "=" not in part), "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The options of ``tgis launch``. ``None`` means that the value is inferred from the model and the machine."""

    # Model
    model_name: Annotated[
        str | None,
        Opt(
            help="Model directory, or hub id in the local cache.",
            group="Model",
            unset="the demo model (`tgis launch` only)",
        ),
    ] = None
    revision: Annotated[
        str | None, Opt(help="Branch, tag or commit of the model in the cache.", group="Model", unset="main")
    ] = None
    deployment_framework: Annotated[
        str | None,
        Opt(help="Engine, by its name in the original.", group="Model", choices=FRAMEWORKS, unset="tgis_native"),
    ] = None
    dtype: Annotated[
        str | None,
        Opt(
            help="Number format of weights and activations.",
            group="Model",
            choices=DTYPES,
            aliases=DTYPE_ALIASES,
            read=read_dtype,
            unset="the checkpoint's, or float32 on a CPU on which that would be slow",
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
            help="Refused: no engine in this version loads quantized weights.",
            group="Model",
            choices=("gptq", "bitsandbytes"),
            hidden=True,
        ),
    ] = None

    # Devices and memory
    device: Annotated[
        str,
        Opt(
            help="Where the model runs.",
            group="Devices and memory",
            choices=("auto", "cpu", "cuda"),
            aliases={"gpu": "cuda"},
            env="TGIS_DEVICE",
        ),
    ] = "auto"
    num_shard: Annotated[
        int | None,
        Opt(
            help="Number of processes that share the model, one per GPU.",
            group="Devices and memory",
            ge=1,
            unset="the number of GPUs that CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES names, otherwise 1",
        ),
    ] = None
    num_gpus: Annotated[
        int | None, Opt(help="Older name of --num-shard.", group="Devices and memory", ge=1, hidden=True)
    ] = None
    kv_cache_memory: Annotated[
        int | None,
        Opt(
            help="Memory for keys and values per shard, such as 2GiB.",
            group="Devices and memory",
            unit="bytes",
            ge=1,
            unset="on CUDA, what is free after loading; on a CPU, enough for one sequence of maximum length, or more "
            "if memory allows",
        ),
    ] = None
    kv_block_size: Annotated[
        int, Opt(help="Tokens per KV block.", group="Devices and memory", ge=1, le=1024, hidden=True)
    ] = 16
    cpu_ops: Annotated[
        str,
        Opt(
            help="Operations on a CPU: the best compiled ones, those of an instruction set, or torch's (reference).",
            group="Devices and memory",
            choices=CPU_OPS,
            env="TGIS_CPU_OPS",
            hidden=True,
        ),
    ] = "auto"
    prefix_cache: Annotated[
        bool, Opt(help="Reuse keys and values of prompts with a common prefix.", group="Devices and memory")
    ] = True
    cpu_pinning: Annotated[
        bool,
        Opt(
            help="Pin each shard to the CPU cores near its GPU or, without GPUs, to cores of its own.",
            group="Devices and memory",
            hidden=True,
        ),
    ] = True
    batch_safety_margin: Annotated[
        int, Opt(help="Percentage of free GPU memory that is held back.", group="Devices and memory", ge=0, le=90)
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
            help="Inputs accepted at once; any more are refused as overload.",
            group="Limits",
            ge=1,
            refusal="max_concurrent_requests must be > 0",
        ),
    ] = 512
    max_sequence_length: Annotated[
        int | None,
        Opt(
            help="Maximum tokens of input and output together.",
            group="Limits",
            ge=2,
            refusal="max_sequence_length ({}) must be at least 2 (1 input + 1 output)",
            unset="the model's",
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        Opt(
            help="Maximum output tokens that a request may ask for.",
            group="Limits",
            ge=1,
            refusal="max_new_tokens ({}) at least 1",
        ),
    ] = 1024
    max_batch_size: Annotated[int, Opt(help="Maximum sequences running at once.", group="Limits", ge=1)] = 256
    max_batch_tokens: Annotated[
        int | None,
        Opt(
            help="Maximum tokens computed in one step; longer prompts are prefilled in chunks.",
            group="Limits",
            ge=1,
            unset="8192 on CUDA, 512 on a CPU",
        ),
    ] = None
    target_inter_token_latency: Annotated[
        float,
        Opt(
            help="Longest pause in seconds between two tokens of a running response; other prompts are prefilled in "
            "chunks small enough to respect it.",
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
            unset="CPUs minus shards, limited to 1 to 8",
        ),
    ] = None

    # Network
    host: Annotated[str, Opt(help="Address to listen on.", group="Network", env="TGIS_HOST")] = "0.0.0.0"  # noqa: S104  a server
    grpc_port: Annotated[int, Opt(help="gRPC port.", group="Network", short="g", ge=0, le=65535)] = 8033
    port: Annotated[int, Opt(help="HTTP port: /health and /metrics.", group="Network", short="p", ge=0, le=65535)] = (
        3000
    )
    tls_cert_path: Annotated[Path | None, Opt(help="Server certificate (PEM).", group="Network")] = None
    tls_key_path: Annotated[Path | None, Opt(help="Server key (PEM).", group="Network")] = None
    tls_client_ca_cert_path: Annotated[
        Path | None, Opt(help="Require client certificates from this CA (PEM) on the gRPC port.", group="Network")
    ] = None
    http_tls: Annotated[
        str,
        Opt(
            help="TLS on the HTTP port; mutual also requires client certificates.",
            group="Network",
            choices=("off", "server", "mutual"),
        ),
    ] = "off"
    max_request_bytes: Annotated[
        int,
        Opt(
            help="Largest gRPC request; a larger one gets OUT_OF_RANGE. A request larger than this limit plus 4 MiB, "
            "or than 8 times this limit if that is less, is not received at all.",
            group="Network",
            unit="bytes",
            ge=1,
            le=1 << 30,
        ),
    ] = 4 << 20
    send_timeout: Annotated[
        float,
        Opt(
            help="Seconds that a client may go without reading its responses before its call is ended.",
            group="Network",
            gt=0,
        ),
    ] = 30.0
    max_connection_age: Annotated[
        float,
        Opt(
            help="Seconds, give or take a tenth, after which a gRPC client is told to reconnect; calls on its old "
            "connection go on. 0: never.",
            group="Network",
            ge=0,
        ),
    ] = 0.0
    output_special_tokens: Annotated[bool, Opt(help="Keep special tokens in output text.", group="Network")] = False
    default_include_stop_seqs: Annotated[
        bool,
        Opt(
            help="Whether output ends with the stop sequence unless a request says otherwise.",
            group="Network",
            takes_value=True,
        ),
    ] = True

    # Process
    run_dir: Annotated[
        Path | None,
        Opt(
            help="Where the directory of the run (sockets, failure logs) is created.",
            group="Process",
            env="TGIS_RUN_DIR",
            unset="the temporary directory",
        ),
    ] = None
    shard_uds_path: Annotated[
        str | None,
        Opt(
            help="Where shards listen: the socket of rank r is PATH-r.",
            group="Process",
            unset="in the run directory",
            hidden=True,
        ),
    ] = None
    startup_timeout: Annotated[
        float, Opt(help="Seconds without progress after which startup is abandoned.", group="Process", gt=0)
    ] = 300.0
    skip_preflight: Annotated[
        bool,
        Opt(help="Start without checking the machine first, in case a check is wrong.", group="Process"),
    ] = False
    step_timeout: Annotated[
        float,
        Opt(
            help="Seconds after which a step is considered hung, or ten times its predicted time if that is longer.",
            group="Process",
            gt=0,
        ),
    ] = 60.0
    drain_delay: Annotated[
        float,
        Opt(help="Seconds during which a stopping server still accepts requests.", group="Process", ge=0),
    ] = 0.0
    drain_timeout: Annotated[
        float, Opt(help="Seconds that a stopping server has to finish its requests.", group="Process", ge=0)
    ] = 90.0
    restart: Annotated[
        str,
        Opt(
            help="Whether to restart a failed group; orchestrators do this themselves.",
            group="Process",
            choices=("none", "on-failure"),
            env="TGIS_RESTART",
        ),
    ] = "none"
    max_restarts: Annotated[
        int,
        Opt(
            help="Maximum restarts in a row; ten minutes of serving reset the count.",
            group="Process",
            ge=1,
            env="TGIS_MAX_RESTARTS",
        ),
    ] = 5
    termination_log: Annotated[
        Path,
        Opt(
            help="Where the cause of a failure is written, if the file is writable.",
            group="Process",
            also_env="TERMINATION_LOG_DIR",
            hidden=True,
        ),
    ] = Path("/dev/termination-log")
    json_output: Annotated[bool, Opt(help="Log JSON lines.", group="Process")] = False
    log_file: Annotated[
        Path | None,
        Opt(
            help="Also append all log lines to this file; SIGHUP reopens it.",
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
            help="Lowest level that is logged.",
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
            help="Nanoseconds that a step of the fake engine takes for each key that a token attends to.",
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
            help="Plan the fake engine's steps one step ahead, as on a GPU.",
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
        Opt(
            help="Shards on one machine connect through the run directory.",
            group="Accepted, without effect",
            hidden=True,
        ),
    ] = None
    master_port: Annotated[
        int | None,
        Opt(
            help="Shards on one machine connect through the run directory.",
            group="Accepted, without effect",
            ge=0,
            le=65535,
            hidden=True,
        ),
    ] = None


@functools.cache
def options() -> tuple[Option, ...]:
    """All options, in the order of ``ServeConfig``."""
    hints = typing.get_type_hints(ServeConfig, include_extras=True)
    found = []
    for field in fields(ServeConfig):
        annotated, opt = typing.get_args(hints[field.name])
        members = [t for t in typing.get_args(annotated) if t is not types.NoneType]
        found.append(Option(field.name, members[0] if members else annotated, field.default, opt))
    return tuple(found)
