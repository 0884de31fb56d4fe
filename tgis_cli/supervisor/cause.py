"""Why a group ended: the earliest primary cause among everything that its processes left behind.

Pure: exits and error records in, one sentence out. Errors that only say that a peer is gone are consequences, and are
reported only where nothing else is known.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tgis_server.errors import GroupFailed

FRONTEND = "frontend"  # the name of its process; shards are shard-0, shard-1, ...

# A dying process closes its sockets before the launcher hears of its death: a peer's error may be this much earlier.
SIGNAL_LEAD_S = 0.5

# How libraries spell "the process at the other end is gone"; such an error that no child has classified is secondary.
PEER_LOST_PHRASES = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "eoferror",
)


class ProcessHangs(GroupFailed):
    """A process neither goes on nor ends; it is asked for its stacks before it is killed."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True, slots=True)
class Exit:
    """A child that ended without having been asked to."""

    name: str
    status: int  # exit code, or minus the signal
    time: float  # wall clock
    tail: Sequence[str] = ()  # its last lines on stderr


@dataclass(frozen=True, slots=True)
class Memory:
    """What the control group says about memory before and after."""

    oom_kills_before: int | None = None
    oom_kills_after: int | None = None
    limit_bytes: int | None = None

    @property
    def was_exhausted(self) -> bool:
        return (self.oom_kills_after or 0) > (self.oom_kills_before or 0)


@dataclass(frozen=True, slots=True)
class Cause:
    """One candidate, in a sentence."""

    name: str
    time: float
    sentence: str
    exit_code: int
    is_secondary: bool = False


def find_cause(
    exits: Iterable[Exit], records: Iterable[Cause], memory: Memory, *, num_shard: int, others: Iterable[Cause] = ()
) -> Cause:
    """The cause to report.

    Args:
        exits: children that ended by themselves.
        records: what children wrote about their errors (:func:`read_records`).
        others: causes found by the launcher itself, such as a process that hangs.
    """
    written = {record.name: record for record in records}
    candidates = [*written.values(), *others]
    candidates += [
        explain_exit(exit_, memory, num_shard) for exit_ in exits if exit_.name not in written or exit_.status < 0
    ]
    primary = [cause for cause in candidates if not cause.is_secondary]
    if not candidates:
        return Cause("launcher", 0.0, "The server ended for an unknown reason.", GroupFailed.exit_code)
    return min(primary or candidates, key=lambda cause: cause.time)


def has_primary(exits: Iterable[Exit], records: Iterable[Cause]) -> bool:
    """Whether the cause is known already, so that nothing needs to be waited for."""
    return any(exit_.status < 0 for exit_ in exits) or any(not record.is_secondary for record in records)


def only_peers_are_blamed(exits: Iterable[Exit], records: Iterable[Cause]) -> bool:
    """Whether everyone that ended says that somebody else is gone."""
    blaming = {record.name for record in records if record.is_secondary}
    return all(exit_.name in blaming for exit_ in exits)


def read_records(errors_dir: Path) -> list[Cause]:
    """What children wrote when an error ended them (``tgis_server.child.write_error``)."""
    found = []
    for file in sorted(errors_dir.glob("*.json")):
        record = json.loads(file.read_text())
        text = record["sentence"]
        is_lost_peer = not record["is_expected"] and any(phrase in text.lower() for phrase in PEER_LOST_PHRASES)
        found.append(
            Cause(
                record["process"],
                record["time"],
                f"{record['process']}: {text}",
                record["exit_code"],
                record["is_secondary"] or is_lost_peer,
            )
        )
    return found


def explain_exit(exit_: Exit, memory: Memory, num_shard: int) -> Cause:
    if exit_.status < 0:
        number = -exit_.status
        # An abort may itself be a library's answer to a lost peer; a kill or a crash never is.
        lead = 0.0 if number in (signal.SIGABRT, signal.SIGTERM) else SIGNAL_LEAD_S
        sentence = explain_signal(exit_, number, memory, num_shard)
        return Cause(exit_.name, exit_.time - lead, sentence, GroupFailed.exit_code)
    if exit_.status == 0:
        sentence = f"{exit_.name} ended although nobody had asked it to."
        return Cause(exit_.name, exit_.time, sentence, GroupFailed.exit_code)
    last = last_line(exit_.tail)
    hint = f'; its last line was "{last}"' if last else " and wrote nothing"
    sentence = f"{exit_.name} ended with exit code {exit_.status}{hint}."
    return Cause(exit_.name, exit_.time, sentence, GroupFailed.exit_code)


def explain_signal(exit_: Exit, number: int, memory: Memory, num_shard: int) -> str:
    name = signal_name(number)
    match number:
        case signal.SIGKILL if memory.was_exhausted:
            limit = f" of {memory.limit_bytes / (1 << 30):.1f} GiB" if memory.limit_bytes else ""
            return (
                f"{exit_.name} was killed by the kernel's out-of-memory killer: the container's memory limit{limit} "
                "was reached; raise it or serve a smaller model."
            )
        case signal.SIGKILL:
            counted = memory.oom_kills_after is not None
            evidence = " (this container's count of such kills did not change)" if counted else ""
            return (
                f"{exit_.name} was killed by {name}; if this was not done by hand, the kernel's out-of-memory killer "
                f"is the usual cause{evidence}: see `dmesg` and the memory limits."
            )
        case signal.SIGBUS if num_shard > 1 and exit_.name != FRONTEND:
            return (
                f"{exit_.name} was killed by {name}, the usual sign of too little shared memory: {num_shard} shards "
                "need at least 1 GiB in /dev/shm; in Kubernetes mount an emptyDir of medium Memory there."
            )
        case signal.SIGSEGV | signal.SIGBUS | signal.SIGILL | signal.SIGFPE:
            return f"{exit_.name} crashed with {name}: its last lines above show where."
        case signal.SIGABRT:
            last = last_line(exit_.tail)
            return f"{exit_.name} aborted itself ({name})" + (f'; its last line was "{last}".' if last else ".")
        case _:
            return f"{exit_.name} was ended by {name} from outside: stop the launcher instead of its children."


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(tail: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(tail) if line.strip()), "")
