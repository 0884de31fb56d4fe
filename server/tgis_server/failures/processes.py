"""A process of the group that died or failed (exit code 5)."""

from tgis_server.errors import GroupFailed
from tgis_server.failures.failure import Failure

OUT_OF_MEMORY_KILLED = Failure(
    "out-of-memory-killed",
    "SIGKILL ended the child that used the most memory, and the control group's count of out-of-memory kills "
    "(`oom_kill`) rose",
    "{process} was killed by the kernel's out-of-memory killer: {memory}; raise the limit, free memory, or serve a "
    "smaller model.",
    GroupFailed,
)
OUT_OF_MEMORY_PERHAPS = Failure(
    "out-of-memory-perhaps",
    "SIGKILL ended a child that used little memory, and that count rose: the kernel may have killed another process",
    "{process} was killed by SIGKILL when {memory}; at that time, the kernel killed a process in this container, "
    "possibly this one: see `dmesg`. Raise the limit, or move other processes out of the container.",
    GroupFailed,
)
KILLED = Failure(
    "killed",
    "SIGKILL ended a child, and that count did not rise",
    "{process} was killed by SIGKILL, but not by the kernel for lack of memory: this container's count of such kills "
    "did not change. Find out who sent the signal (a person, or a daemon such as systemd-oomd), and stop the launcher "
    "instead of its children.",
    GroupFailed,
)
KILLED_PERHAPS_FOR_MEMORY = Failure(
    "killed-perhaps-for-memory",
    "SIGKILL ended a child, and there is no such count",
    "{process} was killed by SIGKILL; unless someone sent it by hand, the likely cause is the kernel's out-of-memory "
    "killer: see `dmesg` and the memory limits.",
    GroupFailed,
)
SHARED_MEMORY_FULL = Failure(
    "shared-memory-full",
    "SIGBUS ended one of several shards, and /dev/shm is full or smaller than 1 GiB; or NCCL reports that it cannot "
    "create a shared memory segment",
    "{process} probably had too little shared memory ({reason}): several shards need at least 1 GiB in /dev/shm, "
    "which has {total_bytes}, of which {free_bytes} is free; in Kubernetes, mount an emptyDir with medium Memory "
    "there.",
    GroupFailed,
)
MAPPED_FILE_LOST = Failure(
    "mapped-file-lost",
    "any other SIGBUS",
    "{process} was killed by SIGBUS at {place}: a file that it had mapped was truncated or can no longer be read; "
    "check the disk, and that nothing changes the model's files while they are served.",
    GroupFailed,
)
ILLEGAL_INSTRUCTION = Failure(
    "illegal-instruction",
    "SIGILL",
    "{process} used an instruction that this CPU lacks (SIGILL) at {place}: install builds of torch and the other "
    "libraries that are made for this CPU, or use a different machine.",
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
    "SIGABRT that the launcher did not send",
    "{process} aborted (SIGABRT) at {place}: {last}; its last lines are in {log}.",
    GroupFailed,
)
ENDED_BY_SIGNAL = Failure(
    "ended-by-signal",
    "another signal, such as SIGTERM, sent only to a child",
    "{process} was ended by {signal} from outside: stop the launcher instead of its children.",
    GroupFailed,
)
ENDED_EARLY = Failure(
    "ended-early",
    "exit code 0 of a child that was not asked to end",
    "{process} ended without being asked to: stop the launcher instead of its children.",
    GroupFailed,
)
ENDED_WITH_CODE = Failure(
    "ended-with-code",
    "another exit code of a child that left no error behind",
    "{process} ended with exit code {code}; {last}.",
    GroupFailed,
)
MISSING_FILE = Failure(
    "missing-file",
    "an error that names a file: `ENOENT`",
    "{process}: {path} does not exist (at {place}): put it back; if it was in the run directory, something is deleting "
    "files there, so choose another directory with --run-dir.",
    GroupFailed,
)
FILE_FORBIDDEN = Failure(
    "file-forbidden",
    "an error that names a file: `EACCES`, `EPERM` or `EROFS`",
    "{process}: {path} cannot be opened by user {uid} ({reason}, at {place}): give that user access, or mount it "
    "writable if it has to be written.",
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
    "`EAGAIN` from a fork, or a library that cannot start a thread, even if it then crashes or repeats a line forever",
    "{process}: no more processes or threads can be started, and {limits}: raise the limit on their number (`ulimit "
    "-u`, --pids-limit of the container, podPidsLimit of the kubelet).",
    GroupFailed,
)
MISSING_PACKAGE = Failure(
    "missing-package",
    "`ModuleNotFoundError`",
    "{process}: the Python package {reason} is not installed for {python}: reinstall TGIS with its dependencies.",
    GroupFailed,
)
BROKEN_LIBRARY = Failure(
    "broken-library",
    "`ImportError`, or a shared object that cannot be loaded",
    "{process}: a library cannot be loaded: {reason}. Install the build of torch that fits this machine's CUDA, and "
    "check LD_LIBRARY_PATH.",
    GroupFailed,
)
GPU_ERROR = Failure(
    "gpu-error",
    "any other error from CUDA",
    "{process}: the GPU failed: {reason} (at {place}); look for Xid lines in `dmesg`, check `nvidia-smi -q`, "
    "and report this if the GPU is healthy. The traceback is in {log}.",
    GroupFailed,
)
UNEXPECTED_ERROR = Failure(
    "unexpected-error",
    "an exception that no row here explains",
    "{process}: {error} (at {place}); the traceback is in {log}.",
    GroupFailed,
)
