"""Where an error that prevents startup is reported: the termination log, and the last line of JSON output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tgis_cli.launch.termination_log import write_termination_log
from tgis_cli.terminal.exits import EXIT_UNEXPECTED, explain_error, is_end
from tgis_server.errors import ModelError, ModelNotFound, TgisError
from tgis_server.options import load_config, options
from tgis_server.words.processes import LAUNCHER


@contextlib.contextmanager
def errors_in_termination_log(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None
) -> Iterator[None]:
    """Also write an error that prevents startup to the termination log and, as an event, to JSON output."""
    try:
        yield
    except Exception as error:
        if is_end(error):
            raise
        sentence, exit_code = explain_error(error)
        termination_log, as_json = find_outputs(flags, environ, config_file)
        write_termination_log(termination_log, sentence)
        if not as_json or exit_code == EXIT_UNEXPECTED:  # an unexpected error keeps its traceback for --debug
            raise
        print(make_failed_line(sentence, exit_code), file=sys.stderr)
        raise SystemExit(exit_code) from error


@contextlib.contextmanager
def words_of_original(model: str | None) -> Iterator[None]:
    """A model that is not found is reported as the original does, which people and tools search for."""
    try:
        yield
    except ModelNotFound as error:
        sentence = str(error)
        if not sentence.startswith(("Model ", "Config file ")):
            sentence = f"Model {model} not found: the directory {sentence.removeprefix(f'{model} ')}"
        raise ModelError(f"Failed to resolve config path: {sentence}") from error


def make_failed_line(sentence: str, exit_code: int) -> str:
    """The last line of JSON output."""
    from tgis_cli.relay.terminal import make_json_line

    return make_json_line(LAUNCHER, sentence, "error", event="failed", exit_code=exit_code)


def find_outputs(flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None) -> tuple[Path, bool]:
    """The termination log and whether output is JSON, even if the rest of the configuration is wrong."""
    try:
        config = load_config(flags, environ, config_file).config
        return config.termination_log, config.json_output
    except TgisError:
        outputs = [option for option in options() if option.name in ("termination_log", "json_output")]
        environ = {name: environ[name] for option in outputs if (name := option.find_variable(environ))}
        config = load_config({option.name: flags.get(option.name) for option in outputs}, environ).config
        return config.termination_log, config.json_output


def find_output_flags(args: Sequence[str]) -> dict[str, Any]:
    """The flags that choose where errors go, read from a command line that may be wrong."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--termination-log", nargs="?")
    parser.add_argument("--json-output", action=argparse.BooleanOptionalAction)
    try:
        return vars(parser.parse_known_args(args)[0])
    except argparse.ArgumentError:  # --json-output=x
        return {}
