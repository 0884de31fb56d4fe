"""A run from start to end: resolve the options, prepare, supervise, restart if asked to, and report why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tgis_cli.causes.cause import explain_own_error
from tgis_cli.decide.resolve import Resolved
from tgis_cli.launch.errors import make_failed_line, words_of_original
from tgis_cli.launch.prepare import Prepared, prepare_or_retry
from tgis_cli.launch.restarts import RestartPolicy
from tgis_cli.launch.termination_log import write_termination_log
from tgis_cli.relay.terminal import DETAILS, Terminal, TerminalHandler
from tgis_cli.runs.run_dir import get_failure_time
from tgis_cli.supervisor.signals import StopSignals, decide_hangup, exit_until_supervised
from tgis_cli.supervisor.supervisor import Outcome, Supervisor
from tgis_cli.terminal.exits import silence_broken_outputs
from tgis_cli.terminal.sentences import fit_sentence
from tgis_cli.terminal.stop_signals import STOP_SIGNALS
from tgis_server import failures
from tgis_server.errors import ModelNotFound, TgisError
from tgis_server.host.descriptors import raise_limit
from tgis_server.host.races import wait_for_first
from tgis_server.logs import setup_handler, setup_logging
from tgis_server.options import LoadedConfig, ServeConfig, load_config
from tgis_server.run import Run
from tgis_server.run.phases import process_started_at
from tgis_server.words.processes import LAUNCHER, child_names

logger = logging.getLogger(__name__)

DEMO_REFUSED = "Model demo not found: the demo model is served by `tgis launch` only."
CLOSE_TERMINAL_S = 1.0  # for a slow reader to take the last lines


def run_launch(
    flags: Mapping[str, Any],
    config_file: Path | None,
    *,
    needs_model: bool = False,
    warnings: Iterable[str] = (),
    is_verbose: bool = False,
    is_attached: bool = False,
) -> int:
    """Serve until stopped, and return the exit code.

    Args:
        needs_model: refuse to start instead of serving the demo model, also by its name.
        warnings: logged before the warnings about the options.
        is_verbose: show all log lines on a terminal too.
        is_attached: started by `tgis run`, for which the original has no words.
    """
    exit_until_supervised()
    os.umask(0o077)  # only this user can access the files that this process and its children create
    environ = dict(os.environ)
    phases = [("starting", process_started_at()), ("resolving", time.monotonic())]
    with contextlib.ExitStack() as undo:  # runs on an error or a signal before children are supervised
        loaded = load_config(flags, environ, config_file)
        if needs_model and not loaded.config.model_name and not loaded.config.rehearse:
            raise failures.NO_MODEL.error()
        decide_hangup(has_log_file=loaded.config.log_file is not None)
        log_to_stderr(loaded.config)
        raise_limit()  # on open files; children inherit it
        policy = RestartPolicy(loaded.config.restart, loaded.config.max_restarts)
        with contextlib.nullcontext() if is_attached else words_of_original(loaded.config.model_name):
            prepared = asyncio.run(prepare_or_retry(loaded, environ, phases, undo, policy))
            if needs_model and prepared.run.label == "demo model":
                raise ModelNotFound(DEMO_REFUSED)
        num_shard, resolved = prepared.run.num_shard, prepared.resolved
        terminal = open_terminal(loaded.config, environ, num_shard, is_verbose=is_verbose, is_shared=is_attached)
        try:
            summarize_choices(resolved, terminal)
            for warning in (*warnings, *resolved.warnings):
                logger.warning("%s", warning)
            log_choices(resolved, terminal)
            outcome = asyncio.run(Launch(loaded, terminal, environ, policy).supervise(prepared, undo))
        except BaseException:
            terminal.close(CLOSE_TERMINAL_S)
            raise
    finish(loaded, terminal, outcome)
    return outcome.exit_code


def summarize_choices(resolved: Resolved, terminal: Terminal) -> None:
    """Show what is served and how, in a few lines for a person who has seen the details before."""
    if logger.isEnabledFor(logging.INFO):
        headline, *rows = resolved.summarize()
        terminal.summarize(headline, rows)


def log_choices(resolved: Resolved, terminal: Terminal) -> None:
    """Log what is served and how, each choice with its reason: as one JSON record, or as a line per choice."""
    headline, *rows = resolved.describe()
    DETAILS.info("%s", headline, extra={"inferred": resolved.inferred()} if terminal.as_json else None)
    for line in () if terminal.as_json else rows:
        DETAILS.info("%s", line)


class Launch:
    """The runs of one command: one, or more with ``--restart``."""

    def __init__(
        self, loaded: LoadedConfig, terminal: Terminal, environ: Mapping[str, str], policy: RestartPolicy
    ) -> None:
        self._loaded = loaded
        self._terminal = terminal
        self._environ = environ
        self._policy = policy
        self._signals = StopSignals(terminal.reopen if loaded.config.log_file else None)

    async def supervise(self, prepared: Prepared, undo: contextlib.ExitStack) -> Outcome:
        """Run the group, and restart it as ``--restart`` says, until it stops or a failure is final.

        Args:
            undo: is cleared; from here on the supervisor decides which files to keep.
        """
        self._signals.install()
        undo.pop_all()
        policy = self._policy
        while True:
            with prepared.lock:  # also while waiting, so that `tgis ps` and `tgis stop` still find this launcher
                outcome = await self._supervise_once(prepared.run)
                if self._signals.received:  # a failure while stopping is final, and nobody gives up
                    return outcome
                if (delay_s := policy.delay_after(outcome.exit_code, outcome.served_s)) is None:
                    return outcome
                policy.announce(outcome.sentence, delay_s)
                again = await self._prepare_again(delay_s)
            if isinstance(again, Outcome):
                return again
            prepared = again
            summarize_choices(prepared.resolved, self._terminal)
            log_choices(prepared.resolved, self._terminal)

    async def _prepare_again(self, delay_s: float) -> Prepared | Outcome:
        """Wait, and make the next run; the outcome if a signal or an error ends the launch instead."""
        if await wait_for_first(self._signals.wait_first(), timeout_s=delay_s) == 0:
            return Outcome(0)
        phases = [("resolving", time.monotonic())]
        with contextlib.ExitStack() as undo:
            again = prepare_or_retry(self._loaded, self._environ, phases, undo, self._policy)
            preparing = asyncio.ensure_future(again)
            if await wait_for_first(preparing, self._signals.wait_first()) != 0:
                return Outcome(0)
            try:  # resolved again, as the machine may have changed: a lost GPU is no longer requested
                prepared = preparing.result()
            except TgisError as error:
                return Outcome(error.exit_code, str(error))
            undo.pop_all()
        return prepared

    async def _supervise_once(self, run: Run) -> Outcome:
        try:
            run.save()
            return await Supervisor(run, self._terminal, self._environ, self._signals).supervise()
        except (OSError, RuntimeError) as error:
            if get_failure_time(run.run_dir) is None:
                shutil.rmtree(run.run_dir, ignore_errors=True)
            if (known := explain_own_error(error)) is None:
                raise
            return Outcome(known.exit_code, str(known))


def log_to_stderr(config: ServeConfig) -> None:
    """Log to stderr until the terminal is open."""
    if config.json_output:
        setup_logging(LAUNCHER, level=config.log_level)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("tgis: %(message)s"))
        logging.basicConfig(handlers=[handler])


class PlainFormatter(logging.Formatter):
    """Formats a record as text, wrapped if a person reads it."""

    def format(self, record: logging.LogRecord) -> str:
        return fit_sentence(super().format(record), sys.stderr)


def open_terminal(
    config: ServeConfig,
    environ: Mapping[str, str],
    num_shard: int,
    *,
    is_verbose: bool = False,
    is_shared: bool = False,
) -> Terminal:
    """Open the launcher's outputs, and send its log there too; see :class:`Terminal`."""
    terminal = Terminal(
        sys.stdout,
        sys.stderr,
        environ,
        as_json=config.json_output,
        names=[LAUNCHER, *child_names(num_shard)],
        log_file=config.log_file,
        is_verbose=is_verbose or config.log_level == "debug",
        is_shared=is_shared,
    )
    setup_handler(TerminalHandler(terminal), LAUNCHER, level=config.log_level)
    return terminal


def finish(loaded: LoadedConfig, terminal: Terminal, outcome: Outcome) -> None:
    """Report the failure, if any, and close the terminal without waiting for a stalled reader."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # already stopping, and the exit code is decided
    if outcome.sentence:
        write_termination_log(loaded.config.termination_log, outcome.sentence, outcome.details)
        line = make_failed_line(outcome.sentence, outcome.exit_code) if terminal.as_json else outcome.sentence
        terminal.print_last(line)
    if not terminal.close(CLOSE_TERMINAL_S):
        os._exit(outcome.exit_code)  # the terminal's thread is stuck in a write, and a normal exit would wait for it
    silence_broken_outputs()
