"""Every failure that ends a start or a running server: how it is recognised, what is said about it, and the exit code.

One row per failure, in the order of exit codes. Code raises ``failures.PORT_IN_USE.error(port=8033, ...)``, and the
page docs/failures.md is made from the same rows. A sentence says what happened, with values, and what to do. Errors of
single requests are the contract's and not listed here.

Knows neither who raises a row nor where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tgis_server.errors import GroupFailed, ModelError, NotEnoughDevices, PeerLost, TgisError, UsageError
from tgis_server.words.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """One row.

    Args:
        name: a short slug, unique, for people who search the docs or their logs.
        evidence: how it is recognised, for the docs.
        sentence: a template of :meth:`str.format`; values whose names end in ``_bytes`` are numbers of bytes.
        kind: the error that it is, which gives the exit code.
    """

    name: str
    evidence: str
    sentence: str
    kind: type[TgisError]

    def format(self, **values: Any) -> str:
        """The sentence with its values."""
        sizes = {name: format_bytes(value) for name, value in values.items() if name.endswith("_bytes")}
        return self.sentence.format(**values | sizes)

    def error(self, **values: Any) -> TgisError:
        """The error to raise."""
        return self.kind(self.format(**values))


# -- Exit code 2: options, addresses and directories ------------------------------------------------------------------

WRONG_OPTION = Failure(
    "wrong-option",
    "the value of a flag, of an environment variable or in the config file; rules that span options say their own",
    "{source} is {value!r}, but must be {accepted}.",
    UsageError,
)
NO_MODEL = Failure(
    "no-model",
    "`text-generation-launcher` without a model",
    "No model is given: use --model-name or MODEL_NAME (`tgis launch` has a demo model).",
    UsageError,
)
PORT_IN_USE = Failure(
    "port-in-use",
    "the address cannot be bound: `EADDRINUSE`",
    "Port {port} is already in use by {owner}: stop it, or choose another with {flag}.",
    UsageError,
)
PORT_RESERVED = Failure(
    "port-reserved",
    "the address cannot be bound: `EACCES`",
    "Port {port} needs more rights (ports below 1024 are reserved): choose another with {flag}.",
    UsageError,
)
HOST_NOT_HERE = Failure(
    "host-not-here",
    "the address cannot be bound: `EADDRNOTAVAIL`",
    "--host {host} is not an address of this machine: use 0.0.0.0 to listen on all of them.",
    UsageError,
)
HOST_UNKNOWN = Failure(
    "host-unknown",
    "the host's name does not resolve",
    "--host {host} is not an address: {reason}; use 0.0.0.0 to listen on all addresses of this machine.",
    UsageError,
)
CANNOT_LISTEN = Failure(
    "cannot-listen",
    "the address cannot be bound, for another reason",
    "Port {port} ({flag}) cannot be listened on: {reason}; check --host and {flag}.",
    UsageError,
)
RUN_DIR_NOT_WRITABLE = Failure(
    "run-dir-not-writable",
    "the run directory cannot be made",
    "The run directory cannot be made in {parent}: {reason}. Choose a writable one with --run-dir.",
    UsageError,
)
SOCKET_PATH_TOO_LONG = Failure(
    "socket-path-too-long",
    "a socket's path has more than the 107 bytes that Linux allows",
    "The socket path {path} is {excess} bytes too long for a Unix socket: choose a shorter --run-dir.",
    UsageError,
)
SOCKET_DIR_NOT_WRITABLE = Failure(
    "socket-dir-not-writable",
    "the directory of a socket is missing or not writable",
    "Sockets cannot be made in {directory}: it is missing or not writable. Choose another --run-dir or "
    "--shard-uds-path.",
    UsageError,
)
SOCKET_IN_USE = Failure(
    "socket-in-use",
    "a process answers on the socket's path",
    "The socket {path} belongs to a running server: choose another --shard-uds-path.",
    UsageError,
)
SOCKET_PATH_TAKEN = Failure(
    "socket-path-taken",
    "what has the name of a socket is none, or is another user's",
    "{path} is {kind}, and is not replaced: move it away, or choose another --shard-uds-path.",
    UsageError,
)
FILE_UNREADABLE = Failure(
    "option-file-unreadable",
    "a file that an option names cannot be opened",
    "{flag} {file} cannot be read: {reason}. Check the path, and that this user may read it.",
    UsageError,
)
LOG_FILE_NOT_WRITABLE = Failure(
    "log-file-not-writable",
    "the file of `--log-file` cannot be opened for writing",
    "--log-file {path} cannot be written: {reason}. Choose a writable one; its directory must exist.",
    UsageError,
)

TLS_FILE_UNREADABLE = Failure(
    "tls-file-unreadable",
    "a TLS file cannot be opened",
    "TLS file {path} cannot be read: {reason}. Check the path, and that this user may read it.",
    UsageError,
)
TLS_PAIR_UNUSABLE = Failure(
    "tls-pair-unusable",
    "OpenSSL does not take certificate and key",
    "TLS certificate {certificate} and key {key} cannot be used together: {reason}. Both must be PEM, belong to each "
    "other, and the key must not be encrypted.",
    UsageError,
)
TLS_CLIENT_CA_UNUSABLE = Failure(
    "tls-client-ca-unusable",
    "OpenSSL does not take the CA of the clients",
    "TLS client CA {path} is not a PEM certificate: {reason}. Name the certificate of the authority, not a key.",
    UsageError,
)
TLS_OUT_OF_DATE = Failure(
    "tls-out-of-date",
    "the server's certificate is not valid at the time of the start",
    "The TLS certificate of {subject} in {path} is valid from {start} to {end}, and now it is {now}: renew it, or set "
    "this machine's clock. Clients refuse it.",
    UsageError,
)
TLS_FILES_CHANGING = Failure(
    "tls-files-changing",
    "the TLS files are replaced at the moment of the start",
    "TLS files beside {path} changed while they were read.",
    UsageError,
)
TRACING_NOT_INSTALLED = Failure(
    "tracing-not-installed",
    "`--otlp-endpoint` without the libraries of the extra",
    "--otlp-endpoint needs libraries that are not installed ({package}): pip install 'tgis[tracing]'.",
    UsageError,
)
CACHE_VARIABLES_DIFFER = Failure(
    "cache-variables-differ",
    "two variables of Hugging Face libraries name different caches",
    "{name} and {other} env vars can't be set to different values",
    UsageError,
)
SHARDS_DO_NOT_DIVIDE = Failure(
    "shards-do-not-divide",
    "heads or MLP of the model cannot be cut into so many parts",
    "--num-shard {num_shard} does not divide this model ({heads} attention heads, {kv_heads} KV heads, MLP of "
    "{mlp}): use one of {valid}.",
    UsageError,
)

# -- Exit code 3: the model -------------------------------------------------------------------------------------------

REVISION_NOT_CACHED = Failure(
    "revision-not-cached",
    "the cache has the model, but no `config.json` of the revision",
    "Failed to resolve config path: Config file not found in local cache for model {model}, revision {revision}. "
    "Expected {expected}; the cache has {revisions}. `tgis download-weights {model} --revision {revision}` gets it.",
    ModelError,
)
MODEL_NOT_FOUND = Failure(
    "model-not-found",
    "the name is neither in the cache nor a directory with `config.json`",
    "Failed to resolve config path: Model {model} not found. There is {found}.",
    ModelError,
)
NOT_A_DIRECTORY = Failure(
    "not-a-directory",
    "the model's directory is gone",
    "{model_dir} is not a directory: give a model directory, or download the model first.",
    ModelError,
)
NO_CONFIG = Failure(
    "no-config",
    "the model's directory has no `config.json`",
    "{model_dir} holds no config.json: it is not a model directory, or its download is incomplete.",
    ModelError,
)
JSON_UNREADABLE = Failure(
    "json-unreadable",
    "a JSON file of the model cannot be opened",
    "{file} cannot be read ({reason}): check that it is there and whole, and that this user may read it.",
    ModelError,
)
JSON_BROKEN = Failure(
    "json-broken",
    "a JSON file of the model does not parse",
    "{file} is not valid JSON ({reason}): correct it, or download it again.",
    ModelError,
)
JSON_NO_OBJECT = Failure(
    "json-no-object",
    "a JSON file of the model holds a list or a value",
    "{file} holds a {found}, not an object: correct it, or download it again.",
    ModelError,
)
CONFIG_NOT_SUPPORTED = Failure(
    "config-not-supported",
    "the architecture or a value in `config.json` is none that an engine computes",
    "{file}: {problem}",
    ModelError,
)
ENGINE_NOT_PRESENT = Failure(
    "engine-not-present",
    "the native engine cannot run the model, and the one that was asked for is missing",
    "{problem} The engine that was asked for, --deployment-framework {framework}, is not part of this version.",
    ModelError,
)
WEIGHTS_NOT_FOUND = Failure(
    "weights-not-found",
    "no safetensors file that holds a model, and no index",
    "{model_dir} holds no model.safetensors and no other weights as safetensors; {hint}.",
    ModelError,
)
WEIGHTS_INCOMPLETE = Failure(
    "weights-incomplete",
    "files are not there that the index names, or that are missing according to the numbering of the others",
    "{model_dir} lacks {num_missing} of {num_files} weight files {told_by} ({missing} for one): {advice}.",
    ModelError,
)
INDEX_EMPTY = Failure(
    "index-empty",
    "the index of the weights names nothing",
    "{index} is no index of weights, as it names no files: download the model again, or try another revision.",
    ModelError,
)
LFS_POINTER = Failure(
    "lfs-pointer",
    "a file of the model begins as what Git leaves in place of a large one",
    "{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in {directory}, or get the model with "
    "`tgis download-weights`.",
    ModelError,
)
WEB_PAGE = Failure(
    "web-page",
    "a file of the model begins with HTML or XML",
    "{file} is a web page, as a proxy or a login sends in place of a file: download it again.",
    ModelError,
)
WEIGHTS_TRUNCATED = Failure(
    "weights-truncated",
    "a weight file is shorter or longer than its header says",
    "{file} has {size} bytes, but its header says {expected}: {problem}, download it again.",
    ModelError,
)
WEIGHTS_NO_HEADER = Failure(
    "weights-no-header",
    "a weight file has no header, or one that does not parse",
    "{file} is not a safetensors file ({reason}): download it again, or remove it if it is none.",
    ModelError,
)
WEIGHTS_UNREADABLE = Failure(
    "weights-unreadable",
    "a weight file fails while it is read",
    "{file} cannot be read ({reason}): check that it is there and whole, and that this user may read it.",
    ModelError,
)
TENSOR_MISSING = Failure(
    "tensor-missing",
    "the weights lack a tensor",
    "{model_dir} holds no tensor {tensor}, which a {family} model of {num_layers} layers needs: the files do not "
    "belong to this config.json, or some are missing.",
    ModelError,
)
HEAD_MISSING = Failure(
    "head-missing",
    "the weights lack the output head, and `config.json` does not call it tied",
    "{model_dir} holds no {tensor}, and config.json does not say that the embedding is the head: set "
    "tie_word_embeddings to true there if it is. Otherwise the files are those of a model that does not generate (of "
    "an embedding model, say), or some are missing.",
    ModelError,
)
TENSOR_AMBIGUOUS = Failure(
    "tensor-ambiguous",
    "two tensors of one name differ, and no index tells which one counts",
    "{tensor} is there twice with different contents, as {first} and as {second}: {advice}.",
    ModelError,
)
TENSOR_SHAPE = Failure(
    "tensor-shape",
    "a tensor has another shape than `config.json` says",
    "{file}: tensor {tensor} has shape {shape}, but config.json asks for {expected}: the files do not belong together.",
    ModelError,
)
TENSOR_DTYPE = Failure(
    "tensor-dtype",
    "a tensor is quantized",
    "{file}: tensor {tensor} is stored as {dtype}, but the native engine reads only {dtypes}: use an unquantized "
    "checkpoint.",
    ModelError,
)
TOKENIZER_UNREADABLE = Failure(
    "tokenizer-unreadable",
    "a file of the tokenizer does not load",
    "{file} cannot be read: {reason}. Download it again.",
    ModelError,
)
TOKENIZER_NOT_UNDERSTOOD = Failure(
    "tokenizer-not-understood",
    "`tokenizer.json` is whole, but describes what the library does not know",
    "tokenizers {version} does not understand {file} ({reason}): upgrade that library if a newer one has saved "
    "the file, or get the file again.",
    ModelError,
)
DECODER_NOT_SUPPORTED = Failure(
    "decoder-not-supported",
    "the tokenizer's decoder needs the whole text",
    "The tokenizer decodes with {found}, which cannot be done token by token. Use a model whose tokenizer.json "
    "decodes with {supported}.",
    ModelError,
)
NO_TOKENIZER = Failure(
    "no-tokenizer",
    "the model directory has no `tokenizer.json`",
    "No existing fast tokenizer (tokenizer.json) found in {model_dir}. Make one with "
    "`tgis convert-to-fast-tokenizer`, or save one there with "
    "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
    ModelError,
)

# -- Exit code 4: devices and memory ----------------------------------------------------------------------------------

RUN_DIR_FULL = Failure(
    "run-dir-full",
    "the file system of the run directory has no room or no inodes for sockets, options and logs of failures",
    "The run directory needs {need_bytes} in {parent}, but {free_bytes} and {free_inodes} inodes are free: make room, "
    "or choose another with --run-dir.",
    NotEnoughDevices,
)
NO_GPU = Failure(
    "no-gpu",
    "`--device cuda`, and no GPU is visible",
    "--device cuda, but no GPU is visible. {hint}",
    NotEnoughDevices,
)
TORCH_WITHOUT_CUDA = Failure(
    "torch-without-cuda",
    "`--device cuda`, and torch is a build for CPUs",
    "--device cuda, but the installed torch is built for CPUs: install a CUDA build of it.",
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
    "the weights alone are larger than what the machine and its control groups have free",
    "{model} has {weights_bytes} of weights as {dtype}, but only {free_bytes} of memory are free ({limit}). Free "
    "memory, raise the limit, or serve a smaller model.",
    NotEnoughDevices,
)
ADDRESSES_LIMITED = Failure(
    "addresses-limited",
    "`RLIMIT_AS` is below what the libraries of a process need before anything is loaded",
    "A process may have only {limit_bytes} of addresses (`ulimit -v`), but needs {need_bytes} before a model is "
    "loaded: remove the limit; control groups limit memory better.",
    NotEnoughDevices,
)
PROCESSES_LIMITED = Failure(
    "processes-limited",
    "`RLIMIT_NPROC` or a control group (`pids.max`) allows fewer threads than the processes will have",
    "{where} allows {limit} processes and threads, of which others have {used}, but {num_shard} shard(s), front-end "
    "and launcher need {need}: raise it (`ulimit -u`, --pids-limit of the container, podPidsLimit of the kubelet), or "
    "lower OMP_NUM_THREADS or --tokenization-workers.",
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
    "weights, room for a step and one sequence exceed what a shard has free, before weights are read",
    "{model} needs {need_bytes} on each shard ({weights_bytes} weights, {step_bytes} for a step, {sequence_bytes} "
    "for one sequence of {length} tokens), but {free_bytes} are free: use more shards (--num-shard), 16-bit "
    "weights (--dtype bfloat16), smaller steps (--max-batch-tokens), a shorter --max-sequence-length, or free memory.",
    NotEnoughDevices,
)
KV_CACHE_TOO_LARGE = Failure(
    "kv-cache-too-large",
    "--kv-cache-memory is more than what is free beside the weights",
    "--kv-cache-memory asks for {asked_bytes} per shard, but only {free_bytes} are free beside the weights: ask for "
    "less, or free memory.",
    NotEnoughDevices,
)
SEQUENCE_TOO_LONG = Failure(
    "sequence-too-long",
    "one sequence does not fit beside the weights",
    "One sequence of {length} tokens needs {need_bytes} for keys and values on each shard, but only {room_bytes} are "
    "available: use --max-sequence-length {longest} or less, or more {more}, or free memory.",
    NotEnoughDevices,
)
WARM_UP_TOO_LARGE = Failure(
    "warm-up-too-large",
    "the first steps, before any request, run out of memory",
    "A step of {num_tokens} tokens does not fit into memory beside the weights: {reason}. Lower --kv-cache-memory, "
    "use more shards, or free memory.",
    NotEnoughDevices,
)

GPU_OUT_OF_MEMORY = Failure(
    "gpu-out-of-memory",
    "torch's `OutOfMemoryError` or a CUDA allocation error outside of a step, which means while loading",
    "{process} ran out of GPU memory (at {place}): it asked for {asked}; use more shards (--num-shard), lower "
    "--kv-cache-memory or --max-batch-tokens, or stop what else uses the GPU (`nvidia-smi`).",
    NotEnoughDevices,
)
HOST_OUT_OF_MEMORY = Failure(
    "host-out-of-memory",
    "`MemoryError`, `ENOMEM`, a refused allocation of torch, or oneDNN without memory for a primitive",
    "{process} ran out of memory (at {place}): it asked for {asked}; raise the memory limit (also `ulimit -v`), or "
    "lower --kv-cache-memory, --max-batch-tokens or --max-batch-size.",
    NotEnoughDevices,
)
DRIVER_TOO_OLD = Failure(
    "driver-too-old",
    "torch says that the NVIDIA driver is too old; before the start, its major version of CUDA is older than torch's",
    "{process}: the NVIDIA driver is too old for the installed torch ({reason}): update the driver, or install torch "
    "in a build for an older CUDA.",
    NotEnoughDevices,
)
GPU_NOT_SUPPORTED = Failure(
    "gpu-not-supported",
    "CUDA says that there is no kernel image for the device; before the start, torch's CUDA compiles for newer ones",
    "{process}: the installed torch has no code for this GPU ({reason}): install a build of torch that supports it, or "
    "use another GPU.",
    NotEnoughDevices,
)
GPU_UNUSABLE = Failure(
    "gpu-unusable",
    "CUDA cannot be initialized",
    "{process}: the GPU cannot be used: {reason}. Check `nvidia-smi`, CUDA_VISIBLE_DEVICES and, on machines with "
    "NVSwitch, that the fabric manager runs.",
    NotEnoughDevices,
)

# -- Exit code 5: a process of the group ------------------------------------------------------------------------------

OUT_OF_MEMORY_KILLED = Failure(
    "out-of-memory-killed",
    "SIGKILL, when the control group's count of out-of-memory kills (`oom_kill`) rose, of the child with most memory",
    "{process} was killed by the kernel's out-of-memory killer: {memory}; raise the limit, free memory, or serve a "
    "smaller model.",
    GroupFailed,
)
OUT_OF_MEMORY_PERHAPS = Failure(
    "out-of-memory-perhaps",
    "SIGKILL, when that count rose, but of a child with little memory: another process may have been meant",
    "{process} was killed by SIGKILL when {memory} and the kernel killed a process of this container, which may have "
    "been this one: see `dmesg`. Raise the limit, or move what else runs in the container.",
    GroupFailed,
)
KILLED = Failure(
    "killed",
    "SIGKILL, and that count did not rise at that time",
    "{process} was killed by SIGKILL, and not by the kernel for lack of memory, as this container's count of such "
    "kills did not change then: find out who sent it (a person, or a daemon such as systemd-oomd), and stop the "
    "launcher instead of its children.",
    GroupFailed,
)
KILLED_PERHAPS_FOR_MEMORY = Failure(
    "killed-perhaps-for-memory",
    "SIGKILL, where there is no such count",
    "{process} was killed by SIGKILL; if this was not done by hand, the kernel's out-of-memory killer is the usual "
    "cause: see `dmesg` and the memory limits.",
    GroupFailed,
)
SHARED_MEMORY_FULL = Failure(
    "shared-memory-full",
    "SIGBUS of one of several shards, where /dev/shm is smaller than 1 GiB or full; NCCL says that it cannot create "
    "a shared memory segment",
    "{process} had too little shared memory, as far as can be told ({reason}): several shards need at least 1 GiB in "
    "/dev/shm, which has {total_bytes}, {free_bytes} of them free; in Kubernetes mount an emptyDir of medium Memory "
    "there.",
    GroupFailed,
)
MAPPED_FILE_LOST = Failure(
    "mapped-file-lost",
    "any other SIGBUS",
    "{process} was killed by SIGBUS at {place}: a file that it had mapped was cut short or cannot be read any more; "
    "check that nothing changes the model's files while they are served, and the disk.",
    GroupFailed,
)
ILLEGAL_INSTRUCTION = Failure(
    "illegal-instruction",
    "SIGILL",
    "{process} used an instruction that this CPU lacks (SIGILL) at {place}: install builds of torch and of the other "
    "libraries that are made for this CPU, or use another machine.",
    GroupFailed,
)
CRASHED = Failure(
    "crashed",
    "SIGSEGV or SIGFPE",
    "{process} crashed with {signal} at {place}: its last lines are in {log}; report them with the output of `tgis "
    "version`.",
    GroupFailed,
)
ABORTED = Failure(
    "aborted",
    "SIGABRT that the launcher has not sent",
    "{process} aborted itself (SIGABRT) at {place}: {last}; its last lines are in {log}.",
    GroupFailed,
)
ENDED_BY_SIGNAL = Failure(
    "ended-by-signal",
    "another signal, such as SIGTERM, sent to a child alone",
    "{process} was ended by {signal} from outside: stop the launcher instead of its children.",
    GroupFailed,
)
ENDED_EARLY = Failure(
    "ended-early",
    "exit code 0 of a child that nobody had asked to end",
    "{process} ended although nobody had asked it to: stop the launcher instead of its children.",
    GroupFailed,
)
ENDED_WITH_CODE = Failure(
    "ended-with-code",
    "another exit code, and no error was left behind",
    "{process} ended with exit code {code}; {last}.",
    GroupFailed,
)
MISSING_FILE = Failure(
    "missing-file",
    "an error that names a file: `ENOENT`",
    "{process}: {path} does not exist (at {place}): put it back; if it was in the run directory, something cleans "
    "that up, and --run-dir chooses another.",
    GroupFailed,
)
FILE_FORBIDDEN = Failure(
    "file-forbidden",
    "an error that names a file: `EACCES`, `EPERM` or `EROFS`",
    "{process}: {path} cannot be opened by user {uid} ({reason}, at {place}): give that user the right, or mount it "
    "writable if it has to be.",
    GroupFailed,
)
DISK_FULL = Failure(
    "disk-full",
    "`ENOSPC` or `EDQUOT`",
    "{process}: there is no space left for {path} (at {place}): free some, or choose another --run-dir.",
    GroupFailed,
)
TOO_MANY_FILES = Failure(
    "too-many-files",
    "`EMFILE` or `ENFILE`",
    "{process}: too many files and connections are open (at {place}): raise the limit (`ulimit -Hn`, LimitNOFILE in "
    "systemd), or lower --max-concurrent-requests.",
    GroupFailed,
)
TOO_MANY_PROCESSES = Failure(
    "too-many-processes",
    "`EAGAIN` of a fork, or a library that cannot start a thread, also where it crashes or repeats a line for ever",
    "{process}: no further process or thread can be started, and {limits}: raise the limit on their number "
    "(`ulimit -u`, --pids-limit of the container, podPidsLimit of the kubelet).",
    GroupFailed,
)
MISSING_PACKAGE = Failure(
    "missing-package",
    "`ModuleNotFoundError`",
    "{process}: the Python package {reason} is not installed beside {python}: install TGIS with its dependencies "
    "again.",
    GroupFailed,
)
BROKEN_LIBRARY = Failure(
    "broken-library",
    "`ImportError`, or a shared object that cannot be loaded",
    "{process}: a library cannot be loaded: {reason}. Install torch in the build that fits this machine's CUDA, and "
    "check LD_LIBRARY_PATH.",
    GroupFailed,
)
GPU_ERROR = Failure(
    "gpu-error",
    "another error of CUDA",
    "{process}: the GPU failed: {reason} (at {place}); look for Xid lines in `dmesg` and at `nvidia-smi -q`, and "
    "report it if the GPU is healthy. The traceback is in {log}.",
    GroupFailed,
)
UNEXPECTED_ERROR = Failure(
    "unexpected-error",
    "an exception that no row here explains",
    "{process}: {error} (at {place}); the traceback is in {log}.",
    GroupFailed,
)
NO_PROGRESS = Failure(
    "no-progress",
    "no process has moved for --startup-timeout",
    "{process} {doing}, and nothing has moved for {timeout_s:g} s; if it only is slow, raise --startup-timeout.",
    GroupFailed,
)
STORAGE_HANGS = Failure(
    "storage-hangs",
    "what the launcher itself reads, before there are other processes, has not moved for --startup-timeout",
    "The launcher has waited for {place} for {timeout_s:g} s: its storage does not answer. Mend the mount (`ls` hangs "
    "there as well) or, if it only is slow, raise --startup-timeout.",
    GroupFailed,
)
LOOK_HANGS = Failure(
    "look-hangs",
    "the launcher itself, before there are other processes, stands still for --startup-timeout, and not at a file",
    "The launcher has stood still for {timeout_s:g} s while it was {doing}: if `nvidia-smi` hangs as well, mend the "
    "driver or restart the machine; if something only is slow, raise --startup-timeout.",
    GroupFailed,
)
LOOK_ENDED = Failure(
    "look-ended",
    "the process in which the launcher looks at the model and the machine ends without an answer",
    "The process in which the launcher looks at the model and the machine {how}{where}: {advice}.",
    GroupFailed,
)
NO_INFO = Failure(
    "no-answer-when-ready",
    "a shard that serves does not describe itself",
    "{process} said that it serves, but does not answer any more; its stacks are in errors/{process}.log of the run "
    "directory.",
    GroupFailed,
)
FRONTEND_HANGS = Failure(
    "frontend-hangs",
    "the launcher's calls of the front-end's health time out",
    "{process} hangs: it has not answered {count} times in a row; its stacks are in errors/{process}.log of the run "
    "directory.",
    GroupFailed,
)
EVENT_LOOP_HANGS = Failure(
    "event-loop-hangs",
    "the front-end tells the launcher that its event loop stands still",
    "{process} hangs: its event loop has stood still for {age_s:.0f} s; its stacks are in errors/{process}.log of the "
    "run directory.",
    GroupFailed,
)
DRAIN_HANGS = Failure(
    "drain-hangs",
    "a drain that does not end in its time",
    "{process} hangs: its drain has not ended within {patience_s:.0f} s; its stacks are in errors/{process}.log of "
    "the run directory.",
    GroupFailed,
)
PROCESS_STOPPED = Failure(
    "process-stopped",
    "a child that was stopped and not continued: SIGCHLD tells the launcher",
    "{process} was stopped by a signal from outside (SIGSTOP) and not continued within {seconds:g} s: find out who "
    "stops processes here.",
    GroupFailed,
)
RANK_SILENT = Failure(
    "rank-silent",
    "a collective times out, and one shard does not answer",
    "{process} does not answer, and the other shards waited for it in vain ({reason}).",
    GroupFailed,
)
RANK_BEHIND = Failure(
    "rank-behind",
    "a collective times out, and one shard has done fewer steps than the others",
    "{process} hangs in step {step}, and the other shards waited for it in vain ({reason}).",
    GroupFailed,
)
PEER_LOST = Failure(
    "peer-lost",
    "a connection or a collective breaks; reported only where nothing else is known",
    "{process} lost contact to another process of the group ({reason}), and nothing else is known: the lines above "
    "may tell more.",
    PeerLost,
)
SHARD_SILENT = Failure(
    "shard-silent",
    "the front-end's calls of a shard's health time out",
    "Shard {rank} does not answer any more.",
    PeerLost,
)
STEP_HANGS = Failure(
    "step-hangs",
    "a step takes longer than --step-timeout, and than ten times what was predicted for it",
    "Shard {rank} hangs: its current step has run for {age_s:.0f} s, more than {limit}.",
    PeerLost,
)
GROUP_STEP_HANGS = Failure(
    "group-step-hangs",
    "a step takes too long on several shards, as those that work wait for the one that hangs",
    "Shards {ranks} hang: their current step has run for {age_s:.0f} s, more than {limit}; one of "
    "them holds up the others.",
    PeerLost,
)
STEP_LOOP_HANGS = Failure(
    "step-loop-hangs",
    "a shard answers, but its step loop stands still between steps",
    "Shard {rank} hangs: its step loop has not answered for {age_s:.0f} s.",
    PeerLost,
)
COLLECTIVE_LOST = Failure(
    "collective-lost",
    "an operation of NCCL or gloo fails",
    "a shard lost contact to the others: {reason}",
    PeerLost,
)
LEADER_GONE = Failure(
    "leader-gone",
    "the plans end without an orderly end",
    "The leader shard is gone.",
    PeerLost,
)
LEADER_LATE = Failure(
    "leader-late",
    "a follower cannot connect for --startup-timeout",
    "The leader shard did not open {path} within {timeout_s:.0f} s.",
    PeerLost,
)
FOLLOWER_GONE = Failure(
    "follower-gone",
    "a follower's connection for plans breaks",
    "A follower shard no longer takes plans ({reason}).",
    PeerLost,
)
FOLLOWER_LATE = Failure(
    "follower-late",
    "a follower does not connect for --startup-timeout",
    "{num_missing} shard(s) did not come to the first step within {timeout_s:.0f} s.",
    PeerLost,
)
ENGINE_CLOSED = Failure(
    "engine-closed",
    "the leader ends the front-end's Session",
    "The engine closed its connection to the front-end.",
    PeerLost,
)
ENGINE_LOST = Failure(
    "engine-lost",
    "the Session breaks",
    "The connection to the engine broke: {reason}.",
    PeerLost,
)
ENGINE_REFUSES = Failure(
    "engine-refuses",
    "requests cannot be written to the Session",
    "Requests could not be sent to the engine: {reason}.",
    PeerLost,
)
MESSAGE_UNUSABLE = Failure(
    "message-unusable",
    "a plan, or a message beside plans, does not fit what a shard holds",
    "{message} cannot be applied: {field} {problem}. This is a defect: report it with the output of `tgis version`.",
    GroupFailed,
)
STEP_TOO_LARGE = Failure(
    "step-too-large",
    "a step runs out of memory on several shards, or twice in a row on one",
    "Step {step} with {num_tokens} tokens of {num_rows} sequences does not fit into memory: {reason}. Lower "
    "--max-batch-tokens, --max-batch-size or --kv-cache-memory.",
    GroupFailed,
)
NO_CAUSE = Failure(
    "no-cause",
    "the group ended, and nothing tells why",
    "The server ended for an unknown reason: the lines above may tell more.",
    GroupFailed,
)

CATALOGUE: tuple[Failure, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Failure))
