"""A process that makes no progress or does not answer (exit code 5)."""

from tgis_server.errors import GroupFailed
from tgis_server.failures.failure import Failure

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
