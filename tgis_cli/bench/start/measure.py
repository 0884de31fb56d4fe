"""``tgis bench start``: cold and warm starts in turn, each measured by what the server and the kernel say about it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tgis_cli.bench.decided import decide, private_run_dir
from tgis_cli.bench.fingerprint import make_fingerprint
from tgis_cli.bench.repeats import make_figure
from tgis_cli.bench.result import Figure, Result
from tgis_cli.bench.start.page_cache import drop, list_files, share_in_memory
from tgis_cli.own_server.launcher import Launcher, LaunchOptions
from tgis_cli.own_server.run_log import RunLog
from tgis_cli.runs.memory import measure_memory
from tgis_cli.runs.servers import READY_FILE, RunningServer
from tgis_cli.terminal.status_line import LINE_S, StatusLine
from tgis_cli.terminal.stop_signals import Stop
from tgis_server.options import load_config

MEMORY_S = 0.25  # between looks at the memory, which cost the processes time
WARM_SHARE = 0.01  # of the model's pages in memory, above which a start was not cold


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server."""

    is_cold: bool
    ready_s: float  # from the start of the launcher until requests are served
    phases: dict[str, float]  # seconds, by process and phase; the processes work side by side
    read_bytes: int  # from storage, by all processes that are left when the server is ready
    peak_bytes: int  # of memory, of all processes together
    held_share: float | None  # of the model's pages in memory before the start; None: not known


@dataclass(slots=True)
class Peak:
    """The most memory that a launcher and its children were seen to use."""

    measure: Callable[[int], int] = measure_memory
    clock: Callable[[], float] = time.monotonic
    num_bytes: int = 0
    _next_at: float = 0.0

    def look(self, pid: int, *, now: bool = False) -> None:
        if now or self.clock() >= self._next_at:
            self.num_bytes = max(self.num_bytes, self.measure(pid))
            self._next_at = self.clock() + MEMORY_S


@dataclass(slots=True)
class Starts:
    """Starts a server again and again."""

    options: LaunchOptions
    environ: Mapping[str, str]
    files: Sequence[Path]  # of the model
    stop: Stop = field(default_factory=Stop)  # ends the measurement early
    done: list[Start] = field(default_factory=list)

    def measure(self, *, is_cold: bool) -> None:
        """Start a server, note what it took, and stop it. A start that a signal interrupts does not count.

        Raises:
            TgisError: the server could not start; with its own sentence.
        """
        if is_cold:
            drop(self.files)
        held = share_in_memory(self.files)
        log = RunLog.open(self.environ)
        peak = Peak()
        try:
            with Launcher.start(self.options, self.environ, log, None) as launcher:
                server = self._wait(launcher, peak)
                if server is not None:
                    peak.look(server.pid, now=True)
                    facts = json.loads((server.door / READY_FILE).read_text())
                    read = count_read_bytes([server.pid, *server.pids.values()])
                    self.done.append(make_start(facts, read, peak.num_bytes, held, is_cold=is_cold))
        finally:
            log.close(is_wanted=False)

    def _wait(self, launcher: Launcher, peak: Peak) -> RunningServer | None:
        """
        Returns:
            The server when it is ready, or ``None`` after a signal.
        """
        server: RunningServer | None = None
        for server in launcher.until_ready():
            if self.stop:
                return None
            if server is not None:
                peak.look(server.pid)
        return server


def make_start(
    facts: Mapping[str, Any], read_bytes: int, peak_bytes: int, held_share: float | None, *, is_cold: bool
) -> Start:
    """
    Args:
        facts: the contents of ``ready.json``.
    """
    phases = {f"{phase['process']}: {phase['phase']}": float(phase["seconds"]) for phase in facts["startup"]}
    return Start(is_cold, float(facts["elapsed_s"]), phases, read_bytes, peak_bytes, held_share)


def count_read_bytes(pids: Sequence[int]) -> int:
    """Bytes that processes have had read from storage, also by mapping files."""
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):  # a sandbox may hide them
            total += psutil.Process(pid).io_counters().read_bytes
    return total


def measure_starts(
    flags: Mapping[str, Any],
    config_file: Path | None,
    environ: Mapping[str, str],
    rounds: int,
    stop: Stop,
) -> Result:
    """Measure, with a line of progress on stderr.

    Raises:
        TgisError: the server could not start, or a signal came before the first start was complete.
    """
    line = StatusLine(sys.stderr, environ, elsewhere_every_s=LINE_S)
    with private_run_dir() as run_dir:
        decided = decide(load_config(flags, environ, config_file), environ, run_dir)
    fingerprint = make_fingerprint(
        environ, model=decided.describe_model(), server=decided.given, run={"rounds": rounds}
    )
    starts = Starts(LaunchOptions(flags, config_file), environ, list_files(decided.run.model_dir), stop)
    try:
        with stop.calling():
            for number, is_cold in list_starts(rounds):
                if stop:
                    break
                line.show(lambda: f"{'cold' if is_cold else 'warm'} start {number} of {rounds}")  # noqa: B023  at once
                starts.measure(is_cold=is_cold)
    finally:
        line.clear()
    if not starts.done:
        raise stop.as_error()
    return Result(
        kind="start",
        options={"rounds": rounds},
        shape={"model": Path(decided.run.model_id).name},
        fingerprint=fingerprint,
        figures=list(make_figures(starts.done)),
        notes=[*decided.warnings, *explain_cold_starts(starts.done)],
        is_cut=bool(stop),
        detail={"starts": [asdict(start) for start in starts.done]},
    )


def list_starts(rounds: int) -> Iterator[tuple[int, bool]]:
    """Numbers of rounds, and whether a start is cold: it leaves the files in memory for the warm one that follows."""
    for number in range(1, rounds + 1):
        yield number, True
        yield number, False


def make_figures(starts: Sequence[Start]) -> Iterator[Figure]:
    """Both kinds of starts as a whole, then each phase with its seconds in both."""
    kinds = {"cold": [each for each in starts if each.is_cold], "warm": [each for each in starts if not each.is_cold]}
    for kind, members in kinds.items():
        if members:
            title = f"{kind} start"
            yield make_figure(title, "ready", "s", "lower", [each.ready_s for each in members])
            yield make_figure(title, "read_bytes", "bytes", "lower", [each.read_bytes for each in members])
            yield make_figure(title, "peak_pss_bytes", "bytes", "lower", [each.peak_bytes for each in members])
    for phase in dict.fromkeys(name for each in starts for name in each.phases):
        for kind, members in kinds.items():
            if members:
                seconds = [each.phases.get(phase, 0.0) for each in members]
                yield make_figure(phase, kind, "s", "lower", seconds)


def explain_cold_starts(starts: Sequence[Start]) -> Iterator[str]:
    """Whether cold starts were cold."""
    held = [each.held_share for each in starts if each.is_cold]
    known = [share for share in held if share is not None]
    if len(known) < len(held):
        yield (
            "It is unknown whether cold starts were cold: the kernel says which pages of a file are in memory only to "
            "those who may write the file."
        )
    elif known and max(known) > WARM_SHARE:
        yield (
            f"Up to {max(known):.0%} of the model's files were in memory before cold starts: the kernel kept pages "
            "that were not yet written to disk or that another process used."
        )
