"""How a command ends: every error a user can cause becomes one sentence on stderr and an exit code.

The codes are those of ``tgis_server.errors``; a closed pipe is 141, as a shell would report the signal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, TextIO

from tgis_cli.terminal.stop_signals import Interrupted
from tgis_server.errors import NotEnoughDevices, TgisError

EXIT_UNEXPECTED = 1
EXIT_BROKEN_PIPE = 141


@contextlib.contextmanager
def errors_as_exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn what the block raises into ``SystemExit`` with the right code. With ``debug`` tracebacks are printed too."""
    prepare_streams()
    try:
        yield
        sys.stdout.flush()  # a closed pipe shows here at the latest, not while the interpreter shuts down
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except Exception as error:  # noqa: BLE001  the border between the program and the person
        if is_end(error):
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if debug:
            print_traceback()
        sentence, exit_code = explain_error(error)
        print(f"tgis: {sentence}", file=sys.stderr, flush=True)
        if isinstance(error, Interrupted):
            os._exit(exit_code)  # at once: while the interpreter ends, an echo of the signal would change the code
        raise SystemExit(exit_code) from None


def is_end(error: Exception) -> bool:
    """Whether a command ends on purpose: its help was shown."""
    return type(error).__name__ in ("Exit", "NoArgsIsHelpError")


def explain_error(error: Exception) -> tuple[str, int]:
    """Why a command ended, and its exit code. What the machine lacks or forbids is told as for a server's processes."""
    if isinstance(error, TgisError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):
        return explain_command_line(error), 2
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"What was given is no valid text ({error}): check it and the locale (LANG).", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        return f"The output cannot be written: {os.strerror(error.errno)}.", NotEnoughDevices.exit_code
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in ("tgis_cli", "tgis_server"):
        return f"This installation of TGIS is broken or mixed with another ({error}): install it again.", 1
    from tgis_cli.causes.cause import explain_own_error

    # A file that a command misses was not in a run directory.
    if not isinstance(error, FileNotFoundError) and (known := explain_own_error(error, "this command")):
        return str(known), known.exit_code
    suspect = "This is a bug, unless PYTHONPATH hides a module" if "PYTHONPATH" in os.environ else "This is a bug"
    return f"{type(error).__name__}: {error}. {suspect}; `tgis --debug ...` shows where.", EXIT_UNEXPECTED


def explain_command_line(error: Any) -> str:
    """What the framework does not accept, with the best of its suggestions."""
    if getattr(error, "possibilities", None):
        return f"{error.message}; did you mean {error.possibilities[0]}?"
    sentence = str(error.format_message()).rstrip(".")
    command = f"{error.ctx.command_path} --help" if error.ctx else "--help"
    return sentence if sentence.endswith("?") else f"{sentence}; `{command}` shows what is accepted."


def prepare_streams() -> None:
    """Whatever streams and locale a command is started with, it can print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed: else a socket would get its number, and what libraries print
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks; stderr does it anyway


def print_traceback() -> None:
    import traceback

    traceback.print_exc()


def silence(stream: TextIO) -> None:
    """Point a stream at nothing, so that the interpreter's last flush has no broken pipe to fail on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def silence_broken_outputs() -> None:
    """For a command that goes on when nobody reads it: its exit code shall not be that of a failed last flush."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
