"""How a command ends: every error a user can cause becomes one sentence on stderr and an exit code.

The codes are those of ``tgis_server.errors``; a closed pipe gives 141, the code with which shells report SIGPIPE.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any, TextIO

from tgis_cli.terminal.capabilities import get_width, is_terminal
from tgis_cli.terminal.stop_signals import Interrupted
from tgis_server.errors import NotEnoughDevices, TgisError
from tgis_server.words.layout import wrap

EXIT_UNEXPECTED = 1
EXIT_BROKEN_PIPE = 141


@contextlib.contextmanager
def errors_as_exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn the block's exceptions into ``SystemExit`` with the right code. With ``debug``, print tracebacks too."""
    prepare_streams()
    try:
        yield
        sys.stdout.flush()  # find a closed pipe here, not while the interpreter shuts down
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except Exception as error:  # noqa: BLE001  the last handler
        if is_end(error):
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if debug:
            print_traceback()
        sentence, exit_code = explain_error(error)
        width = get_width(sys.stderr) if is_terminal(sys.stderr) else None
        print("\n".join(wrap(f"tgis: {sentence}", width)), file=sys.stderr, flush=True)
        if isinstance(error, Interrupted):
            os._exit(exit_code)  # while the interpreter shuts down, an echo of the signal would change the code
        raise SystemExit(exit_code) from None


def is_end(error: Exception) -> bool:
    """Whether this is an orderly end, such as after showing the help."""
    return type(error).__name__ in ("Exit", "NoArgsIsHelpError")


def explain_error(error: Exception) -> tuple[str, int]:
    """Why a command ended, and its exit code. Errors of the machine read like those of a server's processes."""
    if isinstance(error, TgisError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):
        return explain_command_line(error), 2
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"The input is not valid text ({error}): check it and the locale (LANG).", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        return f"The output cannot be written: {os.strerror(error.errno)}.", NotEnoughDevices.exit_code
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in ("tgis_cli", "tgis_server"):
        return f"This installation of TGIS is broken or mixed with another ({error}): reinstall it.", 1
    from tgis_cli.causes.cause import explain_own_error

    # A file missing here was not in a run directory.
    if not isinstance(error, FileNotFoundError) and (known := explain_own_error(error, "this command")):
        return str(known), known.exit_code
    suspect = "This is a bug, unless PYTHONPATH shadows a module" if "PYTHONPATH" in os.environ else "This is a bug"
    return f"{type(error).__name__}: {error}. {suspect}; `tgis --debug ...` shows where.", EXIT_UNEXPECTED


def explain_command_line(error: Any) -> str:
    """The framework's error, with its best suggestion."""
    if getattr(error, "possibilities", None):
        return f"{error.message}; did you mean {error.possibilities[0]}?"
    sentence = str(error.format_message()).rstrip(".")
    command = f"{error.ctx.command_path} --help" if error.ctx else "--help"
    return sentence if sentence.endswith("?") else f"{sentence}; `{command}` shows what is accepted."


def prepare_streams() -> None:
    """Make printing safe with closed streams and with any locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: a socket could get its number, and then what libraries print
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does by default


def print_traceback() -> None:
    import traceback

    traceback.print_exc()


def silence(stream: TextIO) -> None:
    """Point a stream at /dev/null, so that the interpreter's last flush does not fail on a broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def silence_broken_outputs() -> None:
    """Keep a failed last flush from changing the exit code of a command that outlived its readers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
