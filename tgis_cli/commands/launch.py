"""``tgis launch``: resolve the options, check, and supervise the processes until the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tgis_cli.exits import explain, silence_broken_outputs
from tgis_cli.option_help import GroupedHelpCommand
from tgis_cli.options import with_serve_options
from tgis_cli.supervisor.termination_log import write_termination_log
from tgis_server import failures
from tgis_server.config import LoadedConfig, ServeConfig, load_config, options
from tgis_server.errors import TgisError
from tgis_server.run import Run

if TYPE_CHECKING:
    from tgis_cli.machine import Machine
    from tgis_cli.resolve import Resolved
    from tgis_cli.supervisor.supervisor import Outcome
    from tgis_cli.supervisor.terminal import Terminal

app = typer.Typer(add_completion=False)
logger = logging.getLogger(__name__)

CLOSE_TERMINAL_S = 1.0  # for the last lines to be taken by a slow reader


def launch(flags: Mapping[str, Any], config_file: Path | None) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Every option can also be given as an environment variable or in a TOML file; flags win over the environment, and
    that over the file. `tgis config show` tells which value comes from where.
    """
    raise SystemExit(run_launch(flags, config_file))


app.command(cls=GroupedHelpCommand)(with_serve_options(launch))


def run_launch(
    flags: Mapping[str, Any], config_file: Path | None, *, needs_model: bool = False, warnings: Iterable[str] = ()
) -> int:
    """Serve, and return the exit code.

    Args:
        needs_model: refuse to start without a model instead of serving the demo model.
        warnings: logged before those about the options.
    """
    from tgis_cli.supervisor.signals import exit_quietly_until_supervised
    from tgis_server.phases import process_started_at

    exit_quietly_until_supervised()
    os.umask(0o077)  # what this process and its children make is this user's alone
    environ = dict(os.environ)
    phases = [("starting", process_started_at()), ("resolving", time.monotonic())]
    with errors_in_termination_log(flags, environ):
        loaded = load_config(flags, environ, config_file)
        if needs_model and not loaded.config.model_name and not loaded.config.rehearse:
            raise failures.NO_MODEL.error()
        from tgis_cli.machine import probe_machine
        from tgis_cli.resolve import resolve

        machine = probe_machine(environ)
        resolved = resolve(loaded, environ, machine)
        phases.append(("checking", time.monotonic()))
        run = make_run(resolved, machine, phases)
    terminal = open_terminal(loaded.config, environ, resolved.run.num_shard)
    for warning in (*warnings, *resolved.warnings):
        logger.warning("%s", warning)
    log_choices(resolved, terminal)
    outcome = asyncio.run(Launch(resolved, terminal, environ).supervise(run, machine))
    finish(loaded, terminal, outcome)
    return outcome.exit_code


def log_choices(resolved: Resolved, terminal: Terminal) -> None:
    """What is served and how, each choice with its reason: a record, or a line for each."""
    headline, *rows = resolved.describe()
    logger.info("%s", headline, extra={"inferred": resolved.inferred()} if terminal.as_json else None)
    for line in () if terminal.as_json else rows:
        logger.info("%s", line)


def make_run(resolved: Resolved, machine: Machine, phases: list[tuple[str, float]]) -> Run:
    """A run in a directory of its own, once everything is checked.

    Raises:
        TgisError: what stands in the way; the directory is gone again.
    """
    from tgis_cli.machine.preflight import check_before_start
    from tgis_cli.supervisor.run_dir import make_run_dir, remove_leftovers

    parent = resolved.run.config.run_dir
    run_dir = make_run_dir(parent)
    try:
        remove_leftovers(run_dir.parent)
        run = resolved.in_directory(run_dir)
        check_before_start(run, machine, resolved.checkpoint)
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return replace(run, launcher_phases=(*phases, ("spawning", time.monotonic())))


class Launch:
    """The runs of one command: one, or several with ``--restart``."""

    def __init__(self, resolved: Resolved, terminal: Terminal, environ: Mapping[str, str]) -> None:
        from tgis_cli.supervisor.signals import StopSignals

        self._resolved = resolved
        self._terminal = terminal
        self._environ = environ
        self._signals = StopSignals(terminal.reopen if resolved.run.config.log_file else None)

    async def supervise(self, run: Run, machine: Machine) -> Outcome:
        """Run the group, again where ``--restart`` says so, until it stops or fails for good."""
        from tgis_cli.machine import probe_machine
        from tgis_cli.supervisor.restarts import RestartPolicy
        from tgis_cli.supervisor.supervisor import Outcome
        from tgis_cli.supervisor.waiting import first_of

        self._signals.install()
        policy = RestartPolicy(run.config.restart, run.config.max_restarts)
        while True:
            outcome = await self._supervise_once(run, machine)
            if (delay_s := policy.delay_after(outcome)) is None:
                return outcome
            logger.error("%s", outcome.sentence)
            logger.warning("starting again in %.0f s (%s); a stop signal ends it", delay_s, policy.record)
            if await first_of(self._signals.wait_first(), timeout_s=delay_s) == 0:
                return Outcome(0)
            machine = probe_machine(self._environ)
            try:
                run = make_run(self._resolved, machine, [("checking", time.monotonic())])
            except TgisError as error:
                return Outcome(error.exit_code, str(error))

    async def _supervise_once(self, run: Run, machine: Machine) -> Outcome:
        from tgis_cli.supervisor.cause import explain_own_error
        from tgis_cli.supervisor.run_dir import locked
        from tgis_cli.supervisor.supervisor import Outcome, Supervisor

        gpus = [gpu.device for gpu in machine.gpus]
        try:
            with locked(run.run_dir):
                run.save()
                return await Supervisor(run, self._terminal, self._environ, self._signals, gpus=gpus).supervise()
        except OSError as error:
            shutil.rmtree(run.run_dir, ignore_errors=True)
            if (known := explain_own_error(error)) is None:
                raise
            return Outcome(known.exit_code, str(known))


def open_terminal(config: ServeConfig, environ: Mapping[str, str], num_shard: int) -> Terminal:
    """The launcher's outputs, which its log goes to as well."""
    from tgis_cli.supervisor.terminal import Terminal, TerminalHandler
    from tgis_server.logs import setup_handler

    names = ["launcher", "frontend", *(f"shard-{rank}" for rank in range(num_shard))]
    terminal = Terminal(
        sys.stdout, sys.stderr, environ, as_json=config.json_output, names=names, log_file=config.log_file
    )
    setup_handler(TerminalHandler(terminal), "launcher", level=config.log_level)
    return terminal


def finish(loaded: LoadedConfig, terminal: Terminal, outcome: Outcome) -> None:
    """The last line, if there is anything to say; and no waiting for a reader that does not read."""
    from tgis_cli.supervisor.terminal import make_json_line

    if outcome.sentence:
        write_termination_log(loaded.config.termination_log, outcome.sentence, outcome.details)
        fields = {"event": "failed", "exit_code": outcome.exit_code}
        line = make_json_line("launcher", outcome.sentence, "error", **fields) if terminal.as_json else outcome.sentence
        terminal.print_last(line)
    if not terminal.close(CLOSE_TERMINAL_S):
        os._exit(outcome.exit_code)  # its thread is stuck in a write, and the interpreter's end would wait for it
    silence_broken_outputs()


@contextlib.contextmanager
def errors_in_termination_log(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[None]:
    """What prevents a start is also written where Kubernetes looks for it."""
    try:
        yield
    except Exception as error:
        option = next(option for option in options() if option.name == "termination_log")
        variable = option.find_variable(environ)
        file = flags.get(option.name) or (environ[variable] if variable else option.default)
        write_termination_log(Path(file), explain(error)[0])
        raise
