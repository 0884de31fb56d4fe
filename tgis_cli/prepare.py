"""What a start does before it has processes: look at model and machine, check everything, and make a run.

What reads files or asks drivers happens in a forked process, as either may hang: it is watched as the children are
later, with the same time-out, and probes are answered meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgis_cli.forked_work import Forked
from tgis_cli.resolve import Resolved, resolve
from tgis_cli.supervisor.signals import signals_held
from tgis_server import failures
from tgis_server.config import LoadedConfig
from tgis_server.run import Run

logger = logging.getLogger(__name__)

NOT_CHECKED = "nothing was checked before this start (--skip-preflight): what is wrong will show later"
TICK_S = 0.25
PROBES_AFTER_S = 1.0  # the usual start is over then, and the front-end has the port
FIRST_LINE_S = 1.0  # without any movement,
NEXT_LINE_S = 10.0  # and the lines after it


@dataclass(frozen=True, slots=True)
class Examined:
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
    examined = await examine_patiently(loaded, environ, run_dir)
    if not loaded.config.skip_preflight:
        from tgis_cli.machine.preflight import check_ports

        check_ports(loaded.config)
    phases = [*phases, ("checking", examined.checking_at), ("spawning", time.monotonic())]
    return examined.resolved, replace(examined.run, launcher_phases=tuple(phases))


async def examine_patiently(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path) -> Examined:
    """In a process of its own, as long as that moves.

    Raises:
        GroupFailed: it has stood still for ``--startup-timeout``.
        TgisError: as :func:`examine`.
    """
    from tgis_cli.early_probes import EarlyProbes

    config, started_at = loaded.config, time.monotonic()
    probes: EarlyProbes | None = None
    next_line_at = 0.0
    async with contextlib.AsyncExitStack() as stack:
        forked = await stack.enter_async_context(Forked.start(functools.partial(examine, loaded, environ, run_dir)))
        while not await forked.wait(TICK_S):
            now = time.monotonic()
            still_s = now - forked.moved_at
            if still_s >= config.startup_timeout:
                place = forked.place or "an unknown place"
                raise failures.STORAGE_HANGS.error(place=place, timeout_s=config.startup_timeout)
            if forked.place and forked.place.path and still_s >= FIRST_LINE_S and now >= next_line_at:
                next_line_at = now + NEXT_LINE_S
                logger.warning("waiting for %s, which has not answered for %.0f s", forked.place, still_s)
            if probes is None and now - started_at >= PROBES_AFTER_S:
                probes = EarlyProbes(config.model_name or "demo", functools.partial(describe, forked))
                await probes.open(config)
                stack.push_async_callback(probes.close)
        return forked.result()


def describe(forked: Forked[Examined]) -> str:
    """For probes: what the start waits for."""
    return (
        f"the launcher reads {forked.place} for {time.monotonic() - forked.moved_at:.0f} s"
        if forked.place
        else ("the launcher looks at the model")
    )


def examine(loaded: LoadedConfig, environ: Mapping[str, str], run_dir: Path) -> Examined:
    """Look at the machine and at the model's files, and check both.

    Raises:
        TgisError: what stands in the way.
    """
    from tgis_cli.doctor import Context, check_machine
    from tgis_cli.machine import probe_machine
    from tgis_cli.machine.preflight import check_before_start

    machine = probe_machine(environ)
    resolved = resolve(loaded, environ, machine)
    checking_at = time.monotonic()
    run = resolved.in_directory(run_dir)
    if loaded.config.skip_preflight:
        warnings = [NOT_CHECKED]
    else:
        check_before_start(run, machine, resolved.checkpoint)
        warnings = check_machine(Context(environ, loaded, machine, resolved=resolved))
    # The checkpoint is only for the checks, and large.
    resolved = replace(resolved, warnings=(*resolved.warnings, *warnings), checkpoint=None)
    return Examined(resolved, run, checking_at)
