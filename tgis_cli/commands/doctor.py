"""``tgis doctor``: check this machine, and the model that would be served on it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tgis_cli.model_files.completion import complete_model
from tgis_cli.terminal.capabilities import find_width, has_color
from tgis_cli.terminal.options import with_serve_options
from tgis_cli.terminal.sentences import print_sentence

app = typer.Typer(add_completion=False)

EXIT_FAILURE = 1  # a server would not start, or would not serve; wrong flags give 2, as everywhere


def doctor(
    flags: Mapping[str, Any],
    config_file: Path | None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a bug report (.tar.gz) without secrets, prompts or weights."),
    ] = None,
) -> None:
    """Check this machine and suggest fixes. With a model, also check whether it could be served.

    Takes the options of `tgis launch`, and checks ports, TLS files and limits as a launch would. Starts nothing.
    Exit code 0: no failures, perhaps warnings; 1: failures; 2: the command line is wrong.
    """
    from tgis_cli.doctor import (
        Level,
        check_target,
        describe_verdicts,
        examine,
        run_checks,
        verdicts_as_dict,
        write_bug_report,
    )

    environ = dict(os.environ)
    if bundle is not None:
        check_target(bundle)  # a typo is reported before the checks run
    subject = examine(flags, environ, config_file)
    verdicts = run_checks(subject)
    report = verdicts_as_dict(subject, verdicts)
    if json_:
        print(json.dumps(report, indent=1, default=str))
    else:
        lines = describe_verdicts(verdicts, find_width(sys.stdout), is_colored=has_color(sys.stdout, environ))
        print("\n".join(lines))
    if bundle is not None:
        names = write_bug_report(bundle, subject, report)
        print_sentence(f"{bundle} is a bug report with {', '.join(names)}.", sys.stderr if json_ else sys.stdout)
    if any(verdict.level is Level.FAIL for verdict in verdicts):
        sys.stdout.flush()  # a broken pipe has a different exit code
        raise SystemExit(EXIT_FAILURE)


MODEL = "Directory, or hub id in the local cache; without one, only the machine is checked."

app.command()(with_serve_options(doctor, positional_model=MODEL, complete_model=complete_model))
