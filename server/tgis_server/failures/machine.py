"""Devices, memory and disk space that the model and its processes need (exit code 4)."""

from tgis_server.errors import NotEnoughDevices
from tgis_server.failures.failure import Failure

RUN_DIR_FULL = Failure(
    "run-dir-full",
    "the file system of the run directory has no space or no inodes left for sockets, options and failure logs",
    "The run directory needs {need_bytes} in {parent}, but {free_bytes} and {free_inodes} inodes are free: free some "
    "space, or choose another directory with --run-dir.",
    NotEnoughDevices,
)
NO_GPU = Failure(
    "no-gpu",
    "`--device cuda` is given, but no GPU is visible",
    "--device cuda is given, but no GPU is visible. {hint}",
    NotEnoughDevices,
)
TORCH_WITHOUT_CUDA = Failure(
    "torch-without-cuda",
    "`--device cuda` is given, but torch is built for CPUs",
    "--device cuda is given, but the installed torch is built for CPUs: install a CUDA build.",
    NotEnoughDevices,
)
TOO_FEW_GPUS = Failure(
    "too-few-gpus",
    "more shards than visible GPUs",
    "{num_shard} shards configured but only {num_gpus} GPUs detected. Use --num-shard {num_gpus}, or make more GPUs "
    "visible. {hint}",
    NotEnoughDevices,
)
WEIGHTS_EXCEED_MEMORY = Failure(
    "weights-exceed-memory",
    "the weights alone exceed the free memory of the machine and its control groups",
    "{model} has {weights_bytes} of weights as {dtype}, but only {free_bytes} of memory is free ({limit}). Free "
    "memory, raise the limit, or serve a smaller model.",
    NotEnoughDevices,
)
ADDRESSES_LIMITED = Failure(
    "addresses-limited",
    "`RLIMIT_AS` is below what the libraries of a process need before anything is loaded",
    "A process may use only {limit_bytes} of address space (`ulimit -v`), but needs {need_bytes} before a model is "
    "loaded: remove this limit, and limit memory with a control group instead.",
    NotEnoughDevices,
)
PROCESSES_LIMITED = Failure(
    "processes-limited",
    "`RLIMIT_NPROC` or a control group (`pids.max`) allows fewer threads than the processes will start",
    "{where} allows {limit} processes and threads, of which other programs use {used}, but {num_shard} shard(s), the "
    "front-end and the launcher need {need}: raise the limit (`ulimit -u`, --pids-limit of the container, "
    "podPidsLimit of the kubelet), or lower OMP_NUM_THREADS or --tokenization-workers.",
    NotEnoughDevices,
)
WEIGHTS_EXCEED_GPU = Failure(
    "weights-exceed-gpu",
    "the weights of a shard alone are larger than its GPU",
    "{model} needs {weights_bytes} per GPU on {num_shard} GPU(s), but {gpu} offers {usable_bytes}. Use a larger "
    "--num-shard, or larger GPUs.",
    NotEnoughDevices,
)
MODEL_TOO_LARGE = Failure(
    "model-too-large",
    "weights, a step and one sequence together exceed the free memory of a shard; found before weights are read",
    "{model} needs {need_bytes} on each shard ({weights_bytes} weights, {step_bytes} for a step, {sequence_bytes} for "
    "one sequence of {length} tokens), but only {free_bytes} is free: use more shards (--num-shard), 16-bit weights "
    "(--dtype bfloat16), smaller steps (--max-batch-tokens) or a shorter --max-sequence-length, or free some memory.",
    NotEnoughDevices,
)
KV_CACHE_TOO_LARGE = Failure(
    "kv-cache-too-large",
    "--kv-cache-memory exceeds the memory that the weights leave free",
    "--kv-cache-memory asks for {asked_bytes} per shard, but the weights leave only {free_bytes} free: ask for less, "
    "or free memory.",
    NotEnoughDevices,
)
KV_CACHE_TOO_SMALL = Failure(
    "kv-cache-too-small",
    "--kv-cache-memory is less than one sequence needs; found before any process is started",
    "--kv-cache-memory {asked_bytes} is less than the keys and values of one sequence of {length} tokens need on each "
    "shard: use {what_fits}.",
    NotEnoughDevices,
)
SEQUENCE_TOO_LONG = Failure(
    "sequence-too-long",
    "one sequence does not fit into the memory that the weights leave free",
    "One sequence of {length} tokens needs {need_bytes} for keys and values on each shard, but only {room_bytes} is "
    "available: use {advice}, or free memory.",
    NotEnoughDevices,
)
WARM_UP_TOO_LARGE = Failure(
    "warm-up-too-large",
    "the first steps, before any request, run out of memory",
    "A step of {num_tokens} tokens does not fit into the memory that the weights leave free: {reason}. Lower "
    "--kv-cache-memory, use more shards, or free memory.",
    NotEnoughDevices,
)
GPU_OUT_OF_MEMORY = Failure(
    "gpu-out-of-memory",
    "torch's `OutOfMemoryError` or a CUDA allocation error outside a step, that is, while loading",
    "{process} ran out of GPU memory (at {place}): it asked for {asked}; use more shards (--num-shard), lower "
    "--kv-cache-memory or --max-batch-tokens, or stop whatever else uses the GPU (`nvidia-smi`).",
    NotEnoughDevices,
)
HOST_OUT_OF_MEMORY = Failure(
    "host-out-of-memory",
    "`MemoryError`, `ENOMEM`, a failed allocation in torch, or a primitive for which oneDNN has no memory",
    "{process} ran out of memory (at {place}): it asked for {asked}; raise the memory limit (also `ulimit -v`), or "
    "lower --kv-cache-memory, --max-batch-tokens or --max-batch-size.",
    NotEnoughDevices,
)
DRIVER_TOO_OLD = Failure(
    "driver-too-old",
    "torch reports that the NVIDIA driver is too old; before startup: its CUDA major version is older than torch's",
    "{process}: the NVIDIA driver is too old for the installed torch ({reason}): update the driver, or install a "
    "build of torch for an older CUDA.",
    NotEnoughDevices,
)
GPU_NOT_SUPPORTED = Failure(
    "gpu-not-supported",
    "CUDA has no kernel image for the device; before startup: torch's CUDA compiles only for newer GPUs",
    "{process}: the installed torch has no code for this GPU ({reason}): install a build of torch that supports it, "
    "or use a different GPU.",
    NotEnoughDevices,
)
GPU_UNUSABLE = Failure(
    "gpu-unusable",
    "CUDA cannot be initialized",
    "{process}: the GPU cannot be used: {reason}. Check `nvidia-smi` and CUDA_VISIBLE_DEVICES; on machines with "
    "NVSwitch, also check that the fabric manager is running.",
    NotEnoughDevices,
)
