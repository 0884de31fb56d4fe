"""What a start does before it has processes: look at model and machine, check everything, and make a run.

What reads files or asks drivers happens in a forked process, as either may hang: it is watched as the children are
later, with the same time-out, and probes are answered meanwhile.
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
from tgis_cli.supervisor.signals import signals_held
from tgis_server import failures
from tgis_server.errors import GroupFailed, TgisError
from tgis_server.options import LoadedConfig
from tgis_server.run import Run

logger = logging.getLogger(__name__)

NOT_CHECKED = "nothing was checked before this start (--skip-preflight): what is wrong will show later"
LOOKING = "looking at the machine and the model"
TICK_S = 0.25
PROBES_AFTER_S = 1.0  # the usual start is over then, and the front-end has the port
FIRST_LINE_S = 1.0  # without any movement,
NEXT_LINE_S = 10.0  # and the lines after it


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What was found and decided."""

    resolved: Resolved
    run: Run
    checking_at: float  # when the checks began


async def prepare(
    loaded: LoadedConfig, environ: Mapping[str, str], phases: list[tuple[str, float]], undo: contextlib.ExitStack
) -> tuple[Resolved, Run]:
    """Everything up to a run in a directory of its own. In the main thread.

    Args:
        undo: gets what removes the directory.

    Raises:
        TgisError: what stands in the way.
    """
    from tgis_cli.supervisor.run_dir import make_run_dir, remove_leftovers

    with signals_held():  # a directory that nobody knows of would stay
        run_dir = make_run_dir(loaded.config.run_dir)
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
    remove_leftovers(run_dir.parent)
    surveyed = await survey_patiently(loaded, environ, run_dir)
    if not loaded.config.skip_preflight:
        from tgis_cli.decide.preflight import check_ports

        check_ports(loaded.config)
    phases = [*phases, ("checking", surveyed.checking_at), ("spawning", time.monotonic())]
    return surveyed.resolved, replace(surveyed.run, launcher_phases=tuple(phases))


async def prepare_or_retry(
    loaded: LoadedConfig,
    environ: Mapping[str, str],
    phases: list[tuple[str, float]],
    undo: contextlib.ExitStack,
    policy: RestartPolicy,
) -> tuple[Resolved, Run]:
    """The same, again where ``--restart`` says so: storage may answer later, and memory be free.

    Raises:
        TgisError: what stands in the way, for good.
    """
    while True:
        try:
            with contextlib.ExitStack() as attempt:
                prepared = await prepare(loaded, environ, phases, attempt)
                undo.enter_context(attempt.pop_all())
                return prepared
        except GroupFailed as error:
            if (delay_s := policy.delay_after(error.exit_code)) is None:
                raise
            policy.announce(str(error), delay_s)
        await asyncio.sleep(delay_s)
        phases = [("resolving", time.monotonic())]


async def survey_patiently(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path) -> Surveyed:
    """In a process of its own, as long as that moves.

    Raises:
        GroupFailed: it has stood still for ``--startup-timeout``.
        TgisError: as :func:`survey`.
    """
    from tgis_cli.launch.early_probes import EarlyProbes

    config, started_at = loaded.config, time.monotonic()
    probes: EarlyProbes | None = None
    activity = Activity(LOOKING)
    next_line_at = 0.0
    async with contextlib.AsyncExitStack() as stack:
        forked = await stack.enter_async_context(
            Forked.start(functools.partial(survey, loaded, environ, run_dir, activity), activity)
        )
        while not await forked.wait(TICK_S):
            now = time.monotonic()
            still_s = now - forked.moved_at
            if still_s >= config.startup_timeout:
                raise explain_standstill(forked.place, config.startup_timeout)
            path, what = (forked.place.path, forked.place.doing) if forked.place else ("", LOOKING)
            if still_s >= (FIRST_LINE_S if path else NEXT_LINE_S) and now >= next_line_at:
                next_line_at = now + NEXT_LINE_S
                awaited = f"waiting for {path}" if path else what
                logger.warning("%s; nothing has moved for %.0f s", awaited, still_s)
            if probes is None and now - started_at >= PROBES_AFTER_S:
                probes = EarlyProbes(config.model_name or "demo", functools.partial(describe_wait, forked))
                await probes.open(config)
                stack.push_async_callback(probes.close)
        return forked.result()


def explain_standstill(place: Place | None, timeout_s: float) -> TgisError:
    """Storage is blamed only where a file is waited for: a driver may hang as well."""
    if place and place.path:
        return failures.STORAGE_HANGS.error(place=place, timeout_s=timeout_s)
    return failures.LOOK_HANGS.error(doing=place.doing if place else LOOKING, timeout_s=timeout_s)


def describe_wait(forked: Forked[Surveyed]) -> str:
    """For probes: what the start waits for."""
    if forked.place and forked.place.path:
        still_s = time.monotonic() - forked.moved_at
        return f"the launcher has been waiting for {forked.place.path} for {still_s:.0f} s"
    return f"the launcher is {forked.place.doing if forked.place else LOOKING}"


def survey(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path, activity: Activity) -> Surveyed:
    """Look at the machine and at the model's files, and check both.

    Args:
        activity: is told what is looked at.

    Raises:
        TgisError: what stands in the way.
    """
    from tgis_cli.decide.preflight import check_before_start
    from tgis_cli.doctor import Context, check_machine
    from tgis_cli.machine import probe_machine

    activity.what = "asking the driver of the GPUs"
    machine = probe_machine(environ)
    activity.what = "looking at the model"
    resolved = resolve(loaded, environ, machine)
    checking_at, activity.what = time.monotonic(), "checking the machine and the model"
    run = resolved.in_directory(run_dir)
    if loaded.config.skip_preflight:
        warnings = [NOT_CHECKED]
    else:
        check_before_start(run, machine, resolved.sizes)
        warnings = check_machine(Context(environ, loaded, machine, resolved=resolved))
    # Sizes are only for the checks, and large.
    resolved = replace(resolved, warnings=(*resolved.warnings, *warnings), sizes=None)
    return Surveyed(resolved, run, checking_at)
