"""How a command ends: every error a user can cause becomes one sentence on stderr and an exit code.

The codes are those of ``tgis_server.errors``; a closed pipe gives 141, the code with which shells report SIGPIPE.

With ``--json`` the same error is also one JSON object on stdout: ``{"error": ..., "exit_code": ...}``, or, where
``--json`` prints events, the last event: ``{"event": "failed", "text": ..., "exit_code": ...}``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from itertools import pairwise
from typing import Any, NoReturn, TextIO

from tgis_cli.terminal.sentences import print_sentence
from tgis_cli.terminal.stop_signals import Interrupted
from tgis_server.errors import NotEnoughDevices, TgisError

EXIT_UNEXPECTED = 1
EXIT_BROKEN_PIPE = 141
IS_TOLD = "is_told"  # set on an error that the command's own JSON has


@contextlib.contextmanager
def errors_as_exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn the block's exceptions into ``SystemExit`` with the right code. With ``debug``, print tracebacks too."""
    prepare_streams()
    try:
        yield
        sys.stdout.flush()  # find a closed pipe here, not while the interpreter shuts down
    except Exception as error:  # noqa: BLE001  the last handler
        end_with(error, debug=debug)


def end_with(error: Exception, *, debug: bool = False) -> NoReturn:
    """Explain what ended a command, and end the process.

    Raises:
        SystemExit: with the error's exit code.
    """
    if isinstance(error, BrokenPipeError):
        silence(sys.stdout)
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    if is_end(error):
        if hasattr(error, "format_message"):
            print(error.format_message())  # the help, of a group without a command
        raise SystemExit(getattr(error, "exit_code", 1)) from None
    if debug:
        print_traceback()
    sentence, exit_code = explain_error(error)
    with contextlib.suppress(OSError):  # the terminal is gone
        print_failure(sentence, exit_code, () if getattr(error, IS_TOLD, False) else sys.argv[1:])
    if isinstance(error, Interrupted):
        os._exit(exit_code)  # while the interpreter shuts down, an echo of the signal would change the code
    silence_broken_outputs()
    raise SystemExit(exit_code) from None


def leave(exit_code: int) -> NoReturn:
    """End the process without the interpreter's shutdown, which with gRPC takes longer than some answers.

    Raises:
        OSError: the output cannot be written, for instance because it has no reader or no space.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone
                raise
    os._exit(exit_code)


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
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return (
            "This command ran out of memory: free some, or raise its limit (`ulimit -v`).",
            NotEnoughDevices.exit_code,
        )
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
    """The framework's error as a sentence, in the words of our own."""
    from tgis_cli.terminal.option_help import describe_accepted, describe_names, write_usage

    ctx, param, message = error.ctx, getattr(error, "param", None), str(error.format_message())
    if ctx is not None and param is not None:
        if type(error).__name__ == "MissingParameter":
            return f"{describe_names(param)} is missing: `{write_usage(ctx)}`."
        if accepted := describe_accepted(param):
            return f"{max(param.opts, key=len)} must be {accepted}."
    if ctx is not None and (found := re.fullmatch(r"Got unexpected extra arguments? *\(?s?\)? *\((.*)\)", message)):
        from tgis_cli.terminal.suggestions import explain_too_many

        return explain_too_many(found[1], write_usage(ctx))
    if found := re.fullmatch(r"Option '(.*)' requires an argument\.", message):
        message = f"{found[1]} needs a value"
    elif found := re.fullmatch(r"Option '(.*)' does not take a value\.", message):
        message = f"{found[1]} takes no value"
    return point_to_help(message, ctx.command_path if ctx else "tgis")


def point_to_help(sentence: str, command: str) -> str:
    return f"{sentence.rstrip('.')}; `{command} --help` shows what is accepted."


def as_told(error: TgisError) -> TgisError:
    """Mark an error as part of the JSON that a command has already printed: it gets no object of its own."""
    setattr(error, IS_TOLD, True)
    return error


def print_failure(sentence: str, exit_code: int, argv: Sequence[str] = ()) -> None:
    """Print the sentence on stderr and, if the command line asks for JSON, an object on stdout.

    Args:
        argv: what followed the program's name; empty: no JSON.
    """
    print_sentence(f"tgis: {sentence}", sys.stderr)
    if not asks_for_json(argv[: argv.index("--") if "--" in argv else None]):
        return
    from tgis_cli.terminal.command_table import PRINTS_EVENTS

    command = next((word for word in argv if word[:1] != "-"), "")
    if command == "bundle" and "-" in argv:  # stdout has the bundle
        return
    told = {"event": "failed", "text": sentence} if command in PRINTS_EVENTS else {"error": sentence}
    try:
        print(json.dumps(told | {"exit_code": exit_code}), flush=True)
    except OSError:  # no reader, or no space: the sentence must do
        silence(sys.stdout)


def asks_for_json(argv: Sequence[str]) -> bool:
    """Whether stdout gets JSON. Where `tgis bench` measures, ``--json`` names a file, of which ``-`` is stdout."""
    if argv[:1] != ["bench"] or argv[1:2] == ["compare"]:
        return "--json" in argv
    return "--json=-" in argv or ("--json", "-") in pairwise(argv)


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
