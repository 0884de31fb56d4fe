"""From options to a run: decides everything that the options leave open, and gives the reasons.

Reads the model's files, but gets the facts about the machine as an argument. The reasons are logged at startup and
shown by ``tgis config show``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tgis_cli.decide.decisions import Decisions
from tgis_cli.decide.legacy_settings import warn_of_settings
from tgis_cli.decide.resources import (
    choose_device,
    choose_num_shard,
    choose_shard_cpus,
    choose_shard_threads,
    choose_tokenization_workers,
    explain_kv_cache_memory,
)
from tgis_cli.machine import Machine
from tgis_cli.machine.cpus import format_cpu_list
from tgis_cli.machine.words import count
from tgis_cli.model_files import DEMO, DEMO_MODEL_DIR, find_cache_dir, find_model, is_in_cache
from tgis_server import failures
from tgis_server.engines.catalogue import ENGINES, REHEARSAL, Engine, find_engine, find_named
from tgis_server.engines.door import CpuOps, ModelSizes, ModelSummary
from tgis_server.errors import ModelError, TgisError, UsageError
from tgis_server.model_files import Length, read_json
from tgis_server.options import DTYPES, Fault, LoadedConfig, ServeConfig
from tgis_server.run import Run
from tgis_server.words.layout import lay_out
from tgis_server.words.processes import child_names

A_DIRECTORY = "a directory"  # the reason for the place of a model that is not in the cache
UNKNOWN_LENGTH = 2048  # if no engine supports the model and config.json names no length


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run without its directory, with the reasons for its inferred values."""

    run: Run
    reasons: Mapping[str, str]  # name of a field of Run or ServeConfig -> why
    warnings: tuple[str, ...]
    sizes: ModelSizes | None = None  # of the model; None in a rehearsal

    def in_directory(self, run_dir: Path) -> Run:
        return replace(self.run, run_dir=run_dir)

    def inferred(self) -> dict[str, dict[str, Any]]:
        """The value and reason of each decision, by name."""
        values = vars_of(self.run.config) | vars_of(self.run)
        return {name: {"value": values[name], "reason": reason} for name, reason in self.reasons.items()}

    def describe(self) -> list[str]:
        """All decisions as lines: first what is served, then the rest in columns."""
        (_, model_dir, why), *rows = (
            (name, format_value(entry["value"]), entry["reason"]) for name, entry in self.inferred().items()
        )
        return [f"starting {self.run.model_id} from {model_dir} ({why})", *align(rows)]

    def summarize(self) -> tuple[str, str, str]:
        """The decisions that matter to most people: what is served, on what, and with which limits."""
        run, config = self.run, self.run.config
        is_rehearsal = run.label == "rehearsal"
        origin = "" if self.reasons["model_dir"] == A_DIRECTORY else f" ({self.reasons['model_dir']})"
        shards = f", in {run.num_shard} shards" if run.num_shard > 1 else ""
        device = "the CPU" if run.device == "cpu" else count(run.num_shard, "GPU")
        on = f"on {device} ({self.reasons['device']}){shards}, as {run.dtype} ({self.reasons['dtype']})"
        return (
            f"{'Rehearsing' if is_rehearsal else 'Serving'} {run.model_id}{origin}",
            f"on no device{shards}: the answers are made up" if is_rehearsal else on,
            f"up to {run.max_sequence_length:,} tokens per sequence, {config.max_new_tokens:,} of them new; "
            f"{config.max_concurrent_requests:,} requests at once",
        )


def align(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Rows as lines with aligned columns, each on one line."""
    return (line for lines in lay_out(rows) for line in lines)


def vars_of(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def format_value(value: Any) -> str:
    match value:
        case None | () | 0:
            return "-"
        case tuple():
            return " / ".join(format_cpu_list(cpus) for cpus in value)
        case _:
            return str(value)


def resolve(loaded: LoadedConfig, environ: Mapping[str, str], machine: Machine) -> Resolved:
    """Decide everything that the options leave open.

    Raises:
        UsageError: options contradict each other or the environment.
        ModelError: the model does not exist, or no engine can run it.
        NotEnoughDevices: the options ask for more GPUs than there are.
    """
    decide = Decisions(loaded, environ, machine, warnings=list(warn_of_settings(loaded, environ)))
    model_id, model_dir = choose_model(decide)
    read_json(model_dir / "config.json")  # checks it; a rehearsal may read nothing else of the model
    engine = choose_engine(decide, model_dir)
    device = choose_device(decide, engine)
    num_shard = choose_num_shard(decide, engine, device)
    check_fault(decide.config.fault, num_shard)
    if not engine.computes:
        warn_of_real_start(decide, model_dir, num_shard)
    model = engine.door.inspect(model_dir, num_shard)
    decide.warnings += model.warnings
    dtype = choose_dtype(decide, engine, device, model)
    cpu_ops = choose_cpu_ops(decide, engine, device, dtype)
    max_sequence_length = choose_max_sequence_length(decide, model.length)
    max_batch_tokens = choose_max_batch_tokens(decide, device)
    explain_kv_cache_memory(decide, model.sizes, device, dtype, num_shard, max_sequence_length)
    tokenization_workers = choose_tokenization_workers(decide, num_shard)
    shard_cpus = choose_shard_cpus(decide, engine, device, num_shard)
    run = Run(
        config=limit_new_tokens(decide, max_sequence_length),
        run_dir=Path(),
        model_id=model_id,
        model_dir=model_dir,
        engine=engine.name,
        device=device,
        dtype=dtype,
        cpu_ops=cpu_ops,
        num_shard=num_shard,
        max_sequence_length=max_sequence_length,
        is_max_sequence_length_explicit=decide.is_given("max_sequence_length"),
        max_batch_tokens=max_batch_tokens,
        tokenization_workers=tokenization_workers,
        shard_threads=choose_shard_threads(decide, engine, num_shard, shard_cpus),
        gpus=tuple(gpu.device for gpu in machine.gpus[:num_shard]) if device == "cuda" else (),
        shard_cpus=shard_cpus,
        label=choose_label(engine, model_id, model_dir),
    )
    return Resolved(run, decide.reasons, tuple(decide.warnings), model.sizes)


def choose_model(decide: Decisions) -> tuple[str, Path]:
    name = decide.config.model_name
    if name is None:
        decide.reasons["model_dir"] = "no model is given: the demo model that comes with TGIS"
        return DEMO, DEMO_MODEL_DIR
    if not name.strip():
        raise UsageError("The model's name is empty (an unset variable?): give a name, or leave the option out.")
    cache_dir, source = find_cache_dir(decide.environ)
    model_dir = find_model(name, decide.config.revision, cache_dir)
    if name == DEMO and model_dir == DEMO_MODEL_DIR:
        decide.reasons["model_dir"] = "the demo model that comes with TGIS"
        return DEMO, model_dir
    is_cached = is_in_cache(name, model_dir, cache_dir)
    decide.reasons["model_dir"] = f"in the cache {cache_dir} (from {source})" if is_cached else A_DIRECTORY
    return name, model_dir


def choose_label(engine: Engine, model_id: str, model_dir: Path) -> str:
    if not engine.computes:
        return "rehearsal"
    return "demo model" if (model_id, model_dir) == (DEMO, DEMO_MODEL_DIR) else ""


def choose_engine(decide: Decisions, model_dir: Path) -> Engine:
    if decide.config.rehearse:
        decide.reasons["engine"] = "a rehearsal"
        return REHEARSAL
    framework = decide.config.deployment_framework
    named = find_named(framework)
    try:
        engine, _ = find_engine(model_dir, (named,) if named else ENGINES.values())
    except ModelError as error:
        if framework is None or named:
            raise
        raise failures.ENGINE_NOT_PRESENT.error(problem=error, framework=framework) from error
    if framework is None:
        decide.reasons["engine"] = "supports this model's family"
    elif named:
        decide.take_given("deployment_framework", "engine")
    else:
        decide.warnings.append(
            f"deployment framework {framework} is not part of this version: the {engine.name} engine serves this model."
        )
        decide.reasons["engine"] = "the only engine in this version"
    if framework == "hf_custom_tp":
        decide.warnings.append("deployment framework hf_custom_tp is an older name of tgis_native.")
    return engine


def check_fault(text: str | None, num_shard: int) -> None:
    names = child_names(num_shard)
    if text and Fault.parse(text).process not in names:
        raise UsageError(f"--fault {text} would never trigger: the processes are {', '.join(names)}.")


def warn_of_real_start(decide: Decisions, model_dir: Path, num_shard: int) -> None:
    """Warn if a real start would fail: a rehearsal needs no weights, and accepts models that no engine supports."""
    try:
        engine, _ = find_engine(model_dir)
        engine.door.summarize(model_dir, num_shard)
    except TgisError as error:
        decide.warnings.append(f"Without --rehearse this would not start: {error}")


def choose_dtype(decide: Decisions, engine: Engine, device: str, model: ModelSummary) -> str:
    for option in ("dtype", "dtype_str"):
        if decide.is_given(option):
            return str(decide.take_given(option, "dtype"))
    if not engine.computes:
        decide.reasons["dtype"] = "a rehearsal computes nothing"
        return "float32"
    own = model.dtype if model.dtype in DTYPES else "float32"
    if device == "cpu" and own != "float32" and not foresee_cpu_ops(decide, engine, own).kernels:
        if foresee_cpu_ops(decide, engine, "float32").kernels:
            decide.reasons["dtype"] = f"the compiled operations do not compute in {own}"
            return "float32"
        if not decide.machine.has_bf16:
            decide.reasons["dtype"] = "this CPU has no bf16 instructions"
            return "float32"
    decide.reasons["dtype"] = "the checkpoint's"
    return own


def choose_cpu_ops(decide: Decisions, engine: Engine, device: str, dtype: str) -> str:
    """For ``Run.cpu_ops``."""
    if device != "cpu" or not engine.computes:
        return ""
    found = foresee_cpu_ops(decide, engine, dtype)
    decide.reasons["cpu_ops"] = found.reason
    return found.kernels or found.state


def foresee_cpu_ops(decide: Decisions, engine: Engine, dtype: str) -> CpuOps:
    """The operations on this machine's CPU or on a stated one."""
    kernels = decide.machine.cpu_kernels
    if kernels is None:
        return engine.door.describe_cpu_ops(decide.config.cpu_ops, dtype, decide.environ)
    return CpuOps("packaged" if kernels else "reference", kernels, "stated")


def choose_max_sequence_length(decide: Decisions, own: Length | None) -> int:
    """
    Args:
        own: the model's length; ``None`` in a rehearsal of a model that no engine supports.
    """
    if not decide.is_given("max_sequence_length"):
        decide.reasons["max_sequence_length"] = own.reason if own else "config.json names none"
        return own.num_tokens if own else UNKNOWN_LENGTH
    given = int(decide.take_given("max_sequence_length"))
    if own and given > own.num_tokens and own.is_limit:
        decide.warnings.append(
            f"max_sequence_length {given} is lowered to {own.num_tokens} ({own.reason}): "
            "the model has no positions beyond that."
        )
        return own.num_tokens
    if own and given > own.num_tokens:
        decide.warnings.append(
            f"max_sequence_length {given} is above the model's own {own.num_tokens} ({own.reason}): "
            "text beyond that may be of poor quality."
        )
    return given


def limit_new_tokens(decide: Decisions, max_sequence_length: int) -> ServeConfig:
    """Lower max_new_tokens below max_sequence_length, as at least one token of a sequence is input."""
    config = decide.config
    if config.max_new_tokens < max_sequence_length:
        return config
    lowered = max_sequence_length - 1
    decide.reasons["max_new_tokens"] = f"one less than max_sequence_length; {config.max_new_tokens} would not fit"
    if decide.is_given("max_new_tokens"):
        decide.warnings.append(
            f"max_new_tokens {config.max_new_tokens} is lowered to {lowered}: "
            f"max_sequence_length is {max_sequence_length}."
        )
    return replace(config, max_new_tokens=lowered)


def choose_max_batch_tokens(decide: Decisions, device: str) -> int:
    if decide.is_given("max_batch_tokens"):
        return int(decide.take_given("max_batch_tokens"))
    decide.reasons["max_batch_tokens"] = f"the default on a {'GPU' if device == 'cuda' else 'CPU'}"
    return 8192 if device == "cuda" else 512
