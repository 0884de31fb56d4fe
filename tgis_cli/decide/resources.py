"""The decisions that depend on the machine: the device, the number of shards, and their CPUs, threads and memory."""

from __future__ import annotations

from collections.abc import Sequence

from tgis_cli.decide.decisions import Decisions
from tgis_cli.machine import Gpu, Machine
from tgis_cli.machine.cpus import split_cpus
from tgis_cli.machine.gpus import split_devices
from tgis_cli.machine.words import count
from tgis_server import failures
from tgis_server.engines.catalogue import Engine
from tgis_server.engines.door import ModelSizes

CpuSets = tuple[tuple[int, ...], ...]  # the CPUs of each shard; empty = not pinned

MAX_TOKENIZATION_WORKERS = 8  # more threads would only wait for each other

GPU_LISTS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
SEE = "See `nvidia-smi` and CUDA_VISIBLE_DEVICES."


def choose_device(decide: Decisions, engine: Engine) -> str:
    machine = decide.machine
    if not engine.computes:
        decide.reasons["device"] = "a rehearsal needs none"
        return "cpu"
    if machine.gpu_problem and decide.config.device != "cpu" and machine.torch_has_cuda is not False:
        decide.warnings.append(machine.gpu_problem)
    if decide.config.device == "cuda":
        if not machine.gpus:
            raise failures.NO_GPU.error(hint=machine.gpu_problem or SEE)
        if machine.torch_has_cuda is False:
            raise failures.TORCH_WITHOUT_CUDA.error()
    if decide.config.device != "auto":
        return str(decide.take_given("device"))
    if not machine.gpus:
        decide.reasons["device"] = "no GPU can be used" if machine.gpu_problem else "no GPU is visible"
        warn_of_missing_gpus(decide)
        return "cpu"
    if machine.torch_has_cuda is False:
        decide.reasons["device"] = "the installed torch is built for CPUs"
        decide.warnings.append("GPUs are visible but not used: the installed torch is built for CPUs.")
        return "cpu"
    names = ", ".join(dict.fromkeys(gpu.name for gpu in machine.gpus if gpu.name))
    facts = "; ".join(filter(None, (names, machine.driver)))
    decide.reasons["device"] = f"{count(len(machine.gpus), 'GPU')} visible" + (f": {facts}" if facts else "")
    return "cuda"


def warn_of_missing_gpus(decide: Decisions) -> None:
    """Warn if the environment lists GPUs; ``all`` and an empty list do not count, as many images set them."""
    variable = next((name for name in GPU_LISTS if name in decide.environ), "")
    if listed := split_devices(decide.environ.get(variable)):
        decide.warnings.append(
            f"{variable} names {count(len(listed), 'GPU')}, but none can be used: the model runs on the CPU "
            "(--device cuda makes this an error)."
        )


def choose_num_shard(decide: Decisions, engine: Engine, device: str) -> int:
    """The given number, else the number of GPUs in the variables that list them, else one."""
    num_gpus = len(decide.machine.gpus)
    num_shard = infer_num_shard(decide, engine, device)
    if device == "cuda" and num_shard > num_gpus:
        raise failures.TOO_FEW_GPUS.error(
            num_shard=num_shard, num_gpus=num_gpus, hint=decide.machine.gpu_problem or SEE
        )
    if device == "cuda":
        warn_of_shared_boards(decide, decide.machine.gpus[:num_shard])
    return num_shard


def warn_of_shared_boards(decide: Decisions, gpus: Sequence[Gpu]) -> None:
    boards = [gpu.board for gpu in gpus if gpu.board]
    if len(set(boards)) < len(boards):
        decide.warnings.append(
            "Several shards use MIG instances of one GPU, which NCCL may refuse to join: serve with one shard, or on "
            "instances of different GPUs."
        )


def infer_num_shard(decide: Decisions, engine: Engine, device: str) -> int:
    for option in ("num_shard", "num_gpus"):
        if decide.is_given(option):
            return int(decide.take_given(option, "num_shard"))
    if not engine.tensor_parallel:
        decide.reasons["num_shard"] = f"the {engine.name} engine does not divide models"
        return 1
    if device == "cpu" and engine.computes:
        decide.reasons["num_shard"] = "a CPU needs one"
        return 1
    for variable in GPU_LISTS:
        if variable not in decide.environ:
            continue
        listed = split_devices(decide.environ[variable])
        num_gpus = len(decide.machine.gpus) if listed is None else len(listed)
        what = f"all {count(num_gpus, 'GPU')}" if listed is None else count(num_gpus, "GPU")
        decide.reasons["num_shard"] = f"{variable} lists {what}"
        return max(1, num_gpus)
    decide.reasons["num_shard"] = "neither CUDA_VISIBLE_DEVICES nor NVIDIA_VISIBLE_DEVICES is set"
    return 1


def choose_tokenization_workers(decide: Decisions, num_shard: int) -> int:
    if decide.is_given("tokenization_workers"):
        return int(decide.take_given("tokenization_workers"))
    cpus, shards = describe_cpus(decide.machine), count(num_shard, "shard")
    decide.reasons["tokenization_workers"] = f"{cpus} minus {shards}, limited to 1 to 8"
    return max(1, min(decide.machine.num_cpus - num_shard, MAX_TOKENIZATION_WORKERS))


def describe_cpus(machine: Machine) -> str:
    quota = f" (a quota of {machine.cpu_quota:g} on {len(machine.cpus)})" if machine.has_tight_quota else ""
    return f"{count(machine.num_cpus, 'CPU')}{quota}"


def choose_shard_cpus(decide: Decisions, engine: Engine, device: str, num_shard: int) -> CpuSets:
    machine = decide.machine
    chosen: CpuSets = ()
    if not engine.computes:
        reason = "a rehearsal computes nothing"
    elif not decide.config.cpu_pinning:
        reason = decide.loaded.origins["cpu_pinning"]
    elif device == "cuda":
        reason, chosen = choose_near_cpus(machine, num_shard)
    elif num_shard == 1:
        reason = "not pinned: a single shard has no competitor"
    elif machine.has_tight_quota:
        # Another server with such a quota would choose the same cores.
        reason = f"not pinned: {describe_cpus(machine)}, but it is unknown which ones"
    elif len(machine.cpus) < num_shard:
        reason = f"not pinned: {count(num_shard, 'shard')} on {describe_cpus(machine)}"
    else:
        reason, chosen = "separate cores for each shard", split_cpus(machine.cpus, num_shard)
    decide.reasons["shard_cpus"] = reason
    return chosen


def choose_near_cpus(machine: Machine, num_shard: int) -> tuple[str, CpuSets]:
    """The CPUs on the same node as each shard's GPU."""
    allowed = {cpu.number for cpu in machine.cpus}
    near = [(gpu.cpus & allowed) or allowed for gpu in machine.gpus[:num_shard]]
    if all(cpus == allowed for cpus in near):
        return "not pinned: no CPU is known to be nearer to a GPU than others", ()
    return "the CPUs near each shard's GPU", tuple(tuple(sorted(cpus)) for cpus in near)


def choose_shard_threads(decide: Decisions, engine: Engine, num_shard: int, shard_cpus: CpuSets) -> int:
    if not engine.computes:
        decide.reasons["shard_threads"] = "a rehearsal computes nothing"
        return 0
    given = decide.environ.get("OMP_NUM_THREADS", "").strip()
    if given.isdecimal() and int(given):
        decide.reasons["shard_threads"] = "environment OMP_NUM_THREADS"
        if int(given) * num_shard > decide.machine.num_cpus:
            decide.warnings.append(
                f"OMP_NUM_THREADS={given} for {count(num_shard, 'shard')} means more threads than "
                f"{describe_cpus(decide.machine)}: they will wait for each other."
            )
        return int(given)
    num_threads = max(1, min([decide.machine.num_cpus // num_shard, *map(len, shard_cpus)]))
    if given:
        decide.warnings.append(f"OMP_NUM_THREADS is {given!r}, not a number above 0: {num_threads} is used.")
    decide.reasons["shard_threads"] = f"{describe_cpus(decide.machine)} for {count(num_shard, 'shard')}"
    return num_threads


def explain_kv_cache_memory(
    decide: Decisions,
    sizes: ModelSizes | None,
    device: str,
    dtype: str,
    num_shard: int,
    max_sequence_length: int,
) -> None:
    """Explain how the memory for keys and values will be chosen; shards choose it after loading."""
    if decide.is_given("kv_cache_memory"):
        decide.take_given("kv_cache_memory")
    elif sizes is None:
        decide.reasons["kv_cache_memory"] = "a rehearsal has no keys and values"
    elif device == "cuda":
        share = 100 - decide.config.batch_safety_margin
        decide.reasons["kv_cache_memory"] = f"{share}% of what is free on each GPU after loading"
    else:
        sequence_bytes = sizes.kv_bytes_per_token(0, num_shard, dtype) * max_sequence_length
        free_bytes = decide.machine.free_bytes // num_shard
        decide.reasons["kv_cache_memory"] = sizes.explain_cpu_pool(sequence_bytes, free_bytes)
