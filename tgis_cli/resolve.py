"""From options to a run: everything that options leave open is decided here, each with its reason.

Looks at the model's files and at facts about the machine that are passed in; starts nothing and writes nothing. The
reasons are printed once at the start and shown by ``tgis config show``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tgis_server
from tgis_cli.legacy_settings import warn_of_settings
from tgis_cli.machine import Machine
from tgis_cli.machine.gpus import split_devices
from tgis_cli.models import find_cache_dir, find_model_dir, read_model_config
from tgis_server.config import DTYPES, LoadedConfig, ServeConfig
from tgis_server.errors import ModelError, NotEnoughDevices
from tgis_server.run import Run

if TYPE_CHECKING:
    from tgis_server.engines.native.checkpoint import Checkpoint

DEMO_MODEL_DIR = Path(tgis_server.__file__).parent / "demo_model"
NATIVE_FRAMEWORKS = (None, "tgis_native", "hf_custom_tp")

# the first of these that is a positive integer is the model's length
LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
DEFAULT_SEQUENCE_LENGTH = 2048
MAX_TOKENIZATION_WORKERS = 8  # more threads than this only queue behind each other


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run without its directory, and why its inferred values are what they are."""

    run: Run
    reasons: Mapping[str, str]  # name of a Run field -> why
    warnings: tuple[str, ...]
    checkpoint: Checkpoint | None = None  # sizes of the weights; None in a rehearsal

    def in_directory(self, run_dir: Path) -> Run:
        return replace(self.run, run_dir=run_dir)

    def describe(self) -> str:
        """One line for the log: what is served, and where each choice comes from."""
        run = self.run
        chosen = {
            "engine": run.engine,
            "device": run.device,
            "num_shard": f"{run.num_shard} shard{'s' if run.num_shard > 1 else ''}",
            "dtype": run.dtype,
            "max_sequence_length": f"max_sequence_length {run.max_sequence_length}",
        }
        parts = (f"{value} ({self.reasons[name]})" for name, value in chosen.items())
        return f"{run.model_id} from {run.model_dir}: {', '.join(parts)}"


@dataclass(slots=True)
class Decisions:
    """Collects reasons and warnings while a run is resolved."""

    loaded: LoadedConfig
    environ: Mapping[str, str]
    machine: Machine
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def config(self) -> ServeConfig:
        return self.loaded.config

    def is_given(self, option: str) -> bool:
        return self.loaded.origins[option] != "default"

    def take_given(self, option: str, name: str = "") -> Any:
        """The value that the user gave for an option, noting where."""
        self.reasons[name or option] = self.loaded.origins[option]
        return getattr(self.config, option)


def resolve(loaded: LoadedConfig, environ: Mapping[str, str], machine: Machine) -> Resolved:
    """Fill in everything that the options leave open.

    Raises:
        UsageError: options that contradict each other or the environment.
        ModelError: the model is not there, or nothing can run it.
        NotEnoughDevices: more GPUs are asked for than there are.
    """
    decide = Decisions(loaded, environ, machine, warnings=list(warn_of_settings(loaded, environ)))
    model_id, model_dir = choose_model(decide)
    model_config = read_model_config(model_dir)
    engine = choose_engine(decide, model_dir)
    device = choose_device(decide, engine)
    num_shard = choose_num_shard(decide, engine, device)
    checkpoint = None if engine == "fake" else inspect_weights(model_dir, num_shard)
    max_sequence_length = choose_max_sequence_length(decide, model_config)
    run = Run(
        config=limit_new_tokens(decide, max_sequence_length),
        run_dir=Path(),
        model_id=model_id,
        model_dir=model_dir,
        engine=engine,
        device=device,
        dtype=choose_dtype(decide, device, checkpoint),
        num_shard=num_shard,
        max_sequence_length=max_sequence_length,
        is_max_sequence_length_explicit=decide.is_given("max_sequence_length"),
        max_batch_tokens=choose_max_batch_tokens(decide, device),
        tokenization_workers=choose_tokenization_workers(decide, num_shard),
        shard_threads=choose_shard_threads(decide, engine, device, num_shard),
        label="rehearsal" if engine == "fake" else "demo model" if model_id == "demo" else "",
    )
    return Resolved(run, decide.reasons, tuple(decide.warnings), checkpoint)


def choose_model(decide: Decisions) -> tuple[str, Path]:
    name = decide.config.model_name
    if name is None:
        decide.reasons["model_dir"] = "no model is given: the demo model that comes with TGIS"
        return "demo", DEMO_MODEL_DIR
    cache_dir, source = find_cache_dir(decide.environ)
    model_dir = find_model_dir(name, decide.config.revision, cache_dir)
    is_cached = model_dir.is_relative_to(cache_dir)
    decide.reasons["model_dir"] = f"in the cache {cache_dir} (from {source})" if is_cached else "a directory"
    return name, model_dir


def choose_engine(decide: Decisions, model_dir: Path) -> str:
    if decide.config.rehearse:
        decide.reasons["engine"] = "a rehearsal"
        return "fake"
    from tgis_server.engines.native.families import read_spec

    framework = decide.config.deployment_framework
    try:
        read_spec(model_dir)
    except ModelError as error:
        if framework in NATIVE_FRAMEWORKS:
            raise
        raise ModelError(
            f"{error} The engine that was asked for, --deployment-framework {framework}, is not part of this version."
        ) from error
    if framework not in NATIVE_FRAMEWORKS:
        decide.warnings.append(
            f"deployment framework {framework} is not part of this version: the native engine serves this model."
        )
        decide.reasons["engine"] = "the only engine of this version"
    elif framework is None:
        decide.reasons["engine"] = "it has this model's family"
    else:
        decide.take_given("deployment_framework", "engine")
    if framework == "hf_custom_tp":
        decide.warnings.append("deployment framework hf_custom_tp is an older name of tgis_native.")
    return "native"


def choose_device(decide: Decisions, engine: str) -> str:
    machine = decide.machine
    if engine == "fake":
        decide.reasons["device"] = "a rehearsal needs none"
        return "cpu"
    if decide.config.device == "cuda":
        if not machine.gpus:
            raise NotEnoughDevices("--device cuda, but no GPU is visible: see `nvidia-smi` and CUDA_VISIBLE_DEVICES.")
        if machine.torch_has_cuda is False:
            raise NotEnoughDevices(
                "--device cuda, but the installed torch is built for CPUs: install a CUDA build of it."
            )
    if decide.config.device != "auto":
        return str(decide.take_given("device"))
    if not machine.gpus:
        decide.reasons["device"] = "no GPU is visible"
        return "cpu"
    if machine.torch_has_cuda is False:
        decide.reasons["device"] = "the installed torch is built for CPUs"
        decide.warnings.append("GPUs are visible but not used: the installed torch is built for CPUs.")
        return "cpu"
    decide.reasons["device"] = f"{len(machine.gpus)} visible"
    return "cuda"


def choose_num_shard(decide: Decisions, engine: str, device: str) -> int:
    """Given, else as many as the variables that make GPUs visible list, else one."""
    num_gpus = len(decide.machine.gpus)
    num_shard = infer_num_shard(decide, engine, device)
    if device == "cuda" and num_shard > num_gpus:
        raise NotEnoughDevices(
            f"{num_shard} shards configured but only {num_gpus} GPUs detected. "
            f"Use --num-shard {num_gpus}, or make more GPUs visible (CUDA_VISIBLE_DEVICES)."
        )
    return num_shard


def infer_num_shard(decide: Decisions, engine: str, device: str) -> int:
    for option in ("num_shard", "num_gpus"):
        if decide.is_given(option):
            return int(decide.take_given(option, "num_shard"))
    if device == "cpu" and engine != "fake":
        decide.reasons["num_shard"] = "a CPU needs one"
        return 1
    for variable in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        if variable not in decide.environ:
            continue
        listed = split_devices(decide.environ[variable])
        count = 1 if listed is None else len(listed)  # "all" is one entry, as in the original
        decide.reasons["num_shard"] = f"{variable} lists {count}" if listed is not None else f"{variable} is all"
        return max(1, count)
    decide.reasons["num_shard"] = "no variable lists GPUs"
    return 1


def inspect_weights(model_dir: Path, num_shard: int) -> Checkpoint:
    from tgis_server.engines.native.checkpoint import inspect_checkpoint
    from tgis_server.engines.native.families import read_spec

    return inspect_checkpoint(model_dir, read_spec(model_dir), num_shard)


def choose_dtype(decide: Decisions, device: str, checkpoint: Checkpoint | None) -> str:
    for option in ("dtype", "dtype_str"):
        if decide.is_given(option):
            return str(decide.take_given(option, "dtype"))
    if checkpoint is None:
        decide.reasons["dtype"] = "a rehearsal computes nothing"
        return "float32"
    if device == "cpu" and not decide.machine.has_bf16:
        decide.reasons["dtype"] = "this CPU has no bf16 instructions"
        return "float32"
    dtype = checkpoint.spec.dtype or checkpoint.dtype
    decide.reasons["dtype"] = "the checkpoint's"
    return dtype if dtype in DTYPES else "float32"


def choose_max_sequence_length(decide: Decisions, model_config: Mapping[str, Any]) -> int:
    own, key = DEFAULT_SEQUENCE_LENGTH, ""
    for candidate in LENGTH_KEYS:
        value = model_config.get(candidate)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            own, key = value, candidate
            break
    if not decide.is_given("max_sequence_length"):
        decide.reasons["max_sequence_length"] = f"{key} of config.json" if key else "config.json names none"
        return own
    given = int(decide.take_given("max_sequence_length"))
    if key and given > own:
        decide.warnings.append(
            f"max_sequence_length {given} is above the model's own {own} ({key} of config.json): "
            "text beyond that may be of poor quality."
        )
    return given


def limit_new_tokens(decide: Decisions, max_sequence_length: int) -> ServeConfig:
    """At least one token of a sequence is input: a request can never get max_sequence_length new ones."""
    config = decide.config
    if config.max_new_tokens < max_sequence_length:
        return config
    lowered = max_sequence_length - 1
    if decide.is_given("max_new_tokens"):
        decide.warnings.append(
            f"max_new_tokens {config.max_new_tokens} is lowered to {lowered}: "
            f"max_sequence_length is {max_sequence_length}."
        )
    return replace(config, max_new_tokens=lowered)


def choose_max_batch_tokens(decide: Decisions, device: str) -> int:
    if decide.is_given("max_batch_tokens"):
        return int(decide.take_given("max_batch_tokens"))
    decide.reasons["max_batch_tokens"] = f"the default of {device}"
    return 8192 if device == "cuda" else 512


def choose_tokenization_workers(decide: Decisions, num_shard: int) -> int:
    if decide.is_given("tokenization_workers"):
        return int(decide.take_given("tokenization_workers"))
    cpus = decide.machine.num_cpus
    decide.reasons["tokenization_workers"] = f"{cpus} CPUs less {num_shard} shards"
    return max(1, min(cpus - num_shard, MAX_TOKENIZATION_WORKERS))


def choose_shard_threads(decide: Decisions, engine: str, device: str, num_shard: int) -> int:
    if device != "cpu" or engine == "fake":
        decide.reasons["shard_threads"] = "the device computes" if device == "cuda" else "a rehearsal computes nothing"
        return 0
    cpus = decide.machine.num_cpus
    decide.reasons["shard_threads"] = f"{cpus} CPUs for {num_shard} shards"
    return max(1, cpus // num_shard)
