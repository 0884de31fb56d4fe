"""Why a group ended: the earliest primary cause in what its processes left behind.

Exits and error records go in, and one sentence comes out. An error that only reports a lost peer is secondary: it is
the cause to report only if there is no other.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tgis_cli.causes.last_words import (
    FailureSite,
    SharedMemory,
    explain_error,
    find_error,
    find_place,
    is_lost_peer,
    lacks_threads,
    phrase,
)
from tgis_cli.causes.oom import OomEvidence, OomLikelihood
from tgis_server import failures
from tgis_server.errors import GroupFailed, TgisError
from tgis_server.failures import Failure
from tgis_server.words.processes import FRONTEND, LAUNCHER
from tgis_server.words.signals import signal_name

# A dying process closes its sockets before the launcher learns of its death: a peer's error may be this much earlier.
SIGNAL_LEAD_S = 0.5

KILLED = {
    OomLikelihood.YES: failures.OUT_OF_MEMORY_KILLED,
    OomLikelihood.PERHAPS: failures.OUT_OF_MEMORY_PERHAPS,
    OomLikelihood.NO: failures.KILLED,
    OomLikelihood.UNKNOWN: failures.KILLED_PERHAPS_FOR_MEMORY,
}


class ProcessHangs(GroupFailed):
    """A process makes no progress but does not end. It is aborted to get its stacks."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True, slots=True)
class Exit:
    """A child that ended on its own."""

    name: str
    status: int  # exit code, or the negated number of the signal
    time: float  # wall clock
    tail: Sequence[str] = ()  # its last lines on stderr
    log: str = "the run directory"  # where these lines are kept


@dataclass(frozen=True, slots=True)
class Cause:
    """A possible cause of the group's end, in a sentence."""

    name: str
    time: float
    sentence: str
    exit_code: int
    is_secondary: bool = False


def find_cause(
    exits: Iterable[Exit],
    records: Iterable[Cause],
    memory: OomEvidence,
    *,
    num_shard: int,
    others: Iterable[Cause] = (),
    steps: Mapping[str, int | None] | None = None,
) -> Cause:
    """The cause to report.

    Args:
        exits: children that ended on their own.
        records: errors written by children (:func:`read_records`).
        others: causes found by the launcher, such as a process that hangs.
        steps: the number of steps that each remaining shard had executed; ``None`` for one that did not answer.
    """
    written = {record.name: record for record in records}
    candidates = [*written.values(), *others]
    candidates += [
        explain_exit(exit_, memory, num_shard) for exit_ in exits if exit_.name not in written or exit_.status < 0
    ]
    primary = [cause for cause in candidates if not cause.is_secondary]
    if not candidates:
        return Cause(LAUNCHER, 0.0, failures.NO_CAUSE.format(), failures.NO_CAUSE.kind.exit_code)
    cause = min(primary or candidates, key=lambda cause: cause.time)
    return find_waited_for(cause, steps) if cause.is_secondary and steps else cause


def find_waited_for(lost: Cause, steps: Mapping[str, int | None]) -> Cause:
    """The shard that the others gave up waiting for, if one stands out; otherwise ``lost``, the cause they report."""
    if lost.name == FRONTEND:
        return lost  # the front-end watches all shards, and has named the lost one
    silent = [name for name, count in steps.items() if count is None]
    counts = {name: count for name, count in steps.items() if count is not None}
    behind = [name for name, count in counts.items() if count < max(counts.values())]
    if len(silent or behind) != 1:
        return lost
    [name] = silent or behind
    failure = failures.RANK_SILENT if silent else failures.RANK_BEHIND
    sentence = failure.format(process=name, step=counts.get(name, 0) + 1, reason=lost.sentence.rstrip("."))
    return as_cause(name, lost.time, (failure, sentence))


def has_primary(exits: Iterable[Exit], records: Iterable[Cause]) -> bool:
    """Whether the cause is already known, so there is no need to wait for other evidence."""
    # An abort may be a library's reaction to a lost peer.
    has_signal = any(exit_.status < 0 and -exit_.status != signal.SIGABRT for exit_ in exits)
    return has_signal or any(not record.is_secondary for record in records)


def only_peers_are_blamed(exits: Iterable[Exit], records: Iterable[Cause]) -> bool:
    """Whether every process that ended reports a lost peer."""
    blaming = {record.name for record in records if record.is_secondary}
    return all(exit_.name in blaming for exit_ in exits)


def read_records(errors_dir: Path) -> list[Cause]:
    """Read the errors that ended children (written by ``tgis_server.child.write_error``)."""
    return [read_record(file) for file in sorted(errors_dir.glob("*.json"))]


def read_record(file: Path) -> Cause:
    record = json.loads(file.read_text())
    name, time, text = record["process"], record["time"], record["sentence"]
    if record["is_expected"] and not lacks_threads(text):  # one process may be passing on another's error
        return Cause(name, time, f"{name}: {text}", record["exit_code"], record["is_secondary"])
    log = file.with_suffix(".log")
    return as_cause(name, time, explain_words(text, make_site(name, log.read_text(encoding="utf-8"), str(log))))


def explain_exit(exit_: Exit, memory: OomEvidence, num_shard: int) -> Cause:
    site = make_site(exit_.name, "\n".join(exit_.tail), exit_.log)
    if exit_.status < 0:
        number = -exit_.status
        # An abort may itself be a library's reaction to a lost peer; a kill or a crash never is.
        lead = 0.0 if number in (signal.SIGABRT, signal.SIGTERM) else SIGNAL_LEAD_S
        return as_cause(exit_.name, exit_.time - lead, explain_signal(exit_, number, memory, num_shard, site))
    if exit_.status == 0:
        return as_cause(exit_.name, exit_.time, phrase(failures.ENDED_EARLY, site))
    if error := find_error(exit_.tail):
        return as_cause(exit_.name, exit_.time, explain_words(error, site))
    last = quote_last_line(exit_.tail)
    return as_cause(exit_.name, exit_.time, phrase(failures.ENDED_WITH_CODE, site, code=exit_.status, last=last))


def explain_words(error: str, site: FailureSite) -> tuple[Failure, str]:
    """The row and sentence for an error text: a lost peer, or an error of this process."""
    if is_lost_peer(error):
        return phrase(failures.PEER_LOST, site, reason=error.partition("\n")[0].rstrip("."))
    return explain_error(error, site)


def explain_signal(
    exit_: Exit, number: int, memory: OomEvidence, num_shard: int, site: FailureSite
) -> tuple[Failure, str]:
    is_one_of_several = num_shard > 1 and exit_.name != FRONTEND
    match number:
        case signal.SIGKILL:
            return phrase(KILLED[memory.judge(exit_.name, exit_.time)], site, memory=memory.describe())
        case signal.SIGSEGV | signal.SIGABRT if lacks_threads("\n".join(exit_.tail)):
            return phrase(failures.TOO_MANY_PROCESSES, site)
        case signal.SIGBUS if is_one_of_several and site.shared_memory.is_short:
            return phrase(failures.SHARED_MEMORY_FULL, site, reason="SIGBUS")
        case signal.SIGBUS:
            return phrase(failures.MAPPED_FILE_LOST, site)
        case signal.SIGILL:
            return phrase(failures.ILLEGAL_INSTRUCTION, site)
        case signal.SIGSEGV | signal.SIGFPE:
            return phrase(failures.CRASHED, site, signal=signal_name(number))
        case signal.SIGABRT if is_lost_peer("\n".join(exit_.tail)):
            return explain_words(quote_last_line(exit_.tail), site)
        case signal.SIGABRT:
            return phrase(failures.ABORTED, site, last=quote_last_line(exit_.tail))
        case _:
            return phrase(failures.ENDED_BY_SIGNAL, site, signal=signal_name(number))


def explain_own_error(error: Exception, name: str = LAUNCHER) -> TgisError | None:
    """The failure behind an error of this process itself, if it is a known one, such as too many processes."""
    site = make_site(name, "".join(traceback.format_exception(error)), "")
    failure, sentence = explain_error(f"{type(error).__name__}: {error}", site)
    return None if failure is failures.UNEXPECTED_ERROR else failure.kind(sentence)


def explain_lack_of_threads(name: str) -> Cause:
    """The cause for a running process that reports it cannot start threads."""
    return as_cause(name, time.time(), phrase(failures.TOO_MANY_PROCESSES, make_site(name, "", "")))


def make_site(name: str, text: str, log: str) -> FailureSite:
    return FailureSite(name, find_place(text), log, SharedMemory.measure())


def as_cause(name: str, time: float, found: tuple[Failure, str]) -> Cause:
    failure, sentence = found
    return Cause(name, time, sentence, failure.kind.exit_code, failure.kind.is_secondary)


def quote_last_line(tail: Sequence[str]) -> str:
    """The last line before the stacks of a crash, as the second half of a sentence."""
    words = takewhile(lambda line: not line.startswith("Fatal Python error"), tail)
    last = next((line.strip() for line in reversed([*words]) if line.strip()), "")
    return f'its last line was "{last}"' if last else "it gave no reason"
