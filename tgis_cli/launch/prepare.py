"""The start before any child is spawned: inspect the machine and the model, check everything, and make a run.

Reading files and querying drivers can hang, so both happen in a forked process. It is watched as the children are
later, with the same timeout, while probes are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgis_cli.decide.resolve import Resolved, resolve
from tgis_cli.launch.forked_work import Activity, Forked, Place
from tgis_cli.launch.restarts import RestartPolicy
from tgis_cli.runs.run_dir import RunDirLock, make_run_dir, remove_leftovers
from tgis_cli.supervisor.signals import signals_held
from tgis_server import failures
from tgis_server.errors import GroupFailed, TgisError
from tgis_server.options import LoadedConfig, ServeConfig
from tgis_server.run import Run, save_unresolved
from tgis_server.words.loading import INSPECTING

logger = logging.getLogger(__name__)

NOT_CHECKED = "nothing was checked before startup (--skip-preflight): problems will only show up later"
TICK_S = 0.25
PROBES_AFTER_S = 1.0  # a normal survey has ended by then, and the front-end takes the port
FIRST_LINE_S = 1.0  # without progress before the first log line
NEXT_LINE_S = 10.0  # between log lines after that


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The result of :func:`survey`."""

    resolved: Resolved
    run: Run
    checking_at: float  # monotonic time at which the checks began


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked run. Whoever supervises it releases the lock of its directory."""

    resolved: Resolved
    run: Run
    lock: RunDirLock


def open_run_dir(config: ServeConfig, undo: contextlib.ExitStack) -> RunDirLock:
    """Make and lock a run directory, with the file by which `tgis ps` knows the launcher from now on.

    Args:
        undo: gets callbacks that remove the directory and release the lock.

    Raises:
        UsageError: the parent is missing or not writable.
        OSError: its file system has no locks.
    """
    with signals_held():  # a signal before the callbacks are registered would leave the directory behind
        run_dir = make_run_dir(config.run_dir)
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
        lock = undo.enter_context(RunDirLock.take(run_dir))
    with contextlib.suppress(OSError):  # such as a full disk, which the checks will report
        save_unresolved(run_dir, config)
    return lock


async def prepare(
    loaded: LoadedConfig, environ: Mapping[str, str], phases: list[tuple[str, float]], lock: RunDirLock
) -> Prepared:
    """Make a checked run in a directory. Must be called in the main thread.

    Raises:
        TgisError: the reason why the run cannot start.
    """
    remove_leftovers(lock.run_dir.parent)
    surveyed = await survey_patiently(loaded, environ, lock)
    if not loaded.config.skip_preflight:
        from tgis_cli.decide.preflight import check_ports

        check_ports(loaded.config)
    phases = [*phases, ("checking", surveyed.checking_at), ("spawning", time.monotonic())]
    return Prepared(surveyed.resolved, replace(surveyed.run, launcher_phases=tuple(phases)), lock)


async def prepare_or_retry(
    loaded: LoadedConfig,
    environ: Mapping[str, str],
    phases: list[tuple[str, float]],
    undo: contextlib.ExitStack,
    policy: RestartPolicy,
) -> Prepared:
    """Like :func:`prepare`, but retry as ``--restart`` says: storage may answer later, or memory may become free.

    Args:
        undo: see :func:`open_run_dir`.

    Raises:
        TgisError: the reason why the run cannot start.
    """
    lock = open_run_dir(loaded.config, undo)
    while True:
        try:
            return await prepare(loaded, environ, phases, lock)
        except GroupFailed as error:
            if (delay_s := policy.delay_after(error.exit_code)) is None:
                raise
            policy.announce(str(error), delay_s)
        await asyncio.sleep(delay_s)
        phases = [("resolving", time.monotonic())]


async def survey_patiently(loaded: LoadedConfig, environ: Mapping[str, str], lock: RunDirLock) -> Surveyed:
    """Run :func:`survey` in a forked process, for as long as it makes progress.

    Raises:
        GroupFailed: it made no progress for ``--startup-timeout`` seconds.
        TgisError: see :func:`survey`.
    """
    from tgis_cli.launch.early_probes import EarlyProbes

    config, started_at = loaded.config, time.monotonic()
    probes: EarlyProbes | None = None
    activity = Activity(INSPECTING)
    next_line_at = 0.0
    async with contextlib.AsyncExitStack() as stack:
        work = functools.partial(survey, loaded, environ, lock.run_dir, activity)
        forked = await stack.enter_async_context(Forked.start(work, activity, release=lock.release))
        while not await forked.wait(TICK_S):
            now = time.monotonic()
            still_s = now - forked.moved_at
            if still_s >= config.startup_timeout:
                raise explain_standstill(forked.place, config.startup_timeout)
            path, what = (forked.place.path, forked.place.doing) if forked.place else ("", INSPECTING)
            if still_s >= (FIRST_LINE_S if path else NEXT_LINE_S) and now >= next_line_at:
                next_line_at = now + NEXT_LINE_S
                awaited = f"waiting for {path}" if path else what
                logger.warning("%s; no progress for %.0f s", awaited, still_s)
            if probes is None and now - started_at >= PROBES_AFTER_S:
                probes = EarlyProbes(config.model_name or "demo", functools.partial(describe_wait, forked))
                await probes.open(config)
                stack.push_async_callback(probes.close)
        return forked.result()


def explain_standstill(place: Place | None, timeout_s: float) -> TgisError:
    """Blame storage only if the work waits for a file: a driver may hang as well."""
    if place and place.path:
        return failures.STORAGE_HANGS.error(place=place, timeout_s=timeout_s)
    return failures.LOOK_HANGS.error(doing=place.doing if place else INSPECTING, timeout_s=timeout_s)


def describe_wait(forked: Forked[Surveyed]) -> str:
    """What startup is waiting for, as answers to probes put it."""
    if forked.place and forked.place.path:
        still_s = time.monotonic() - forked.moved_at
        return f"the launcher has been waiting for {forked.place.path} for {still_s:.0f} s"
    return f"the launcher is {forked.place.doing if forked.place else INSPECTING}"


def survey(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path, activity: Activity) -> Surveyed:
    """Inspect the machine and the model's files, resolve the options, and check both.

    Args:
        activity: is updated with what is being inspected.

    Raises:
        TgisError: the reason why the run cannot start.
    """
    from tgis_cli.decide.preflight import check_before_start
    from tgis_cli.doctor import Subject, check_machine
    from tgis_cli.machine import probe_machine

    activity.what = "querying the GPU driver"
    machine = probe_machine(environ)
    activity.what = "looking at the model"
    resolved = resolve(loaded, environ, machine)
    checking_at, activity.what = time.monotonic(), "checking the machine and the model"
    run = resolved.in_directory(run_dir)
    if loaded.config.skip_preflight:
        warnings = [NOT_CHECKED]
    else:
        check_before_start(run, machine, resolved.sizes)
        warnings = check_machine(Subject(environ, loaded, machine, resolved=resolved))
    # Only the checks need the sizes, which are large.
    resolved = replace(resolved, warnings=(*resolved.warnings, *warnings), sizes=None)
    return Surveyed(resolved, run, checking_at)
