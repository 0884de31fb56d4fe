"""A process that makes no progress or does not answer (exit code 5)."""

from tgis_server.errors import GroupFailed
from tgis_server.failures.failure import Failure

NO_PROGRESS = Failure(
    "no-progress",
    "no process makes progress for --startup-timeout",
    "{process} {doing}, and there was no progress for {timeout_s:g} s; if it is only slow, raise --startup-timeout.",
    GroupFailed,
)
STORAGE_HANGS = Failure(
    "storage-hangs",
    "the launcher itself, before it starts other processes, waits for a file for --startup-timeout",
    "The launcher has waited for {place} for {timeout_s:g} s: its storage does not answer. Repair the mount (`ls` "
    "hangs there as well) or, if it is only slow, raise --startup-timeout.",
    GroupFailed,
)
LOOK_HANGS = Failure(
    "look-hangs",
    "the launcher itself, before it starts other processes, makes no progress for --startup-timeout, and is not "
    "waiting for a file",
    "The launcher has made no progress for {timeout_s:g} s while it was {doing}: if `nvidia-smi` hangs as well, "
    "repair the driver or restart the machine; if it is only slow, raise --startup-timeout.",
    GroupFailed,
)
LOOK_ENDED = Failure(
    "look-ended",
    "the process that inspects the model and the machine for the launcher ends without a result",
    "The process that inspects the model and the machine {how}{where}: {advice}.",
    GroupFailed,
)
NO_INFO = Failure(
    "no-answer-when-ready",
    "a shard that is serving does not describe itself",
    "{process} reported that it is serving, but no longer answers; its stacks are in errors/{process}.log of the "
    "run directory.",
    GroupFailed,
)
FRONTEND_HANGS = Failure(
    "frontend-hangs",
    "the launcher's health checks of the front-end time out",
    "{process} is hung: it has failed to answer {count} times in a row; its stacks are in errors/{process}.log of the "
    "run directory.",
    GroupFailed,
)
EVENT_LOOP_HANGS = Failure(
    "event-loop-hangs",
    "the front-end reports that its event loop is stuck",
    "{process} is hung: its event loop has been stuck for {age_s:.0f} s; its stacks are in errors/{process}.log of the "
    "run directory.",
    GroupFailed,
)
DRAIN_HANGS = Failure(
    "drain-hangs",
    "a drain does not end in time",
    "{process} is hung: its drain has not ended within {patience_s:.0f} s; its stacks are in errors/{process}.log of "
    "the run directory.",
    GroupFailed,
)
PROCESS_STOPPED = Failure(
    "process-stopped",
    "SIGCHLD tells the launcher that a child was stopped, and the child is not continued",
    "{process} was stopped by a signal from outside (SIGSTOP) and not continued within {seconds:g} s: find out what "
    "is stopping processes on this machine.",
    GroupFailed,
)
