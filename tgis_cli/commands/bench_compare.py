"""``tgis bench compare``: two results of the same benchmark, and an exit code for pipelines."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tgis_cli.bench.shares import MAX_REGRESS, read_share
from tgis_cli.terminal.capabilities import find_width, has_color
from tgis_server.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="Result of `tgis bench ... --json OLD.json`.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The result to judge.")],
    max_regress: Annotated[
        str, typer.Option(metavar="SHARE", help="How much worse a figure may become, such as 5% or 0.05.")
    ] = f"{MAX_REGRESS:.0%}",
    any_shape: Annotated[bool, typer.Option(help="Compare results of different loads, too.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for a pull request.")] = False,
) -> None:
    """Compare two results; exit with 1 if the newer one is worse.

    A figure is worse if it has changed by more than --max-regress and by more than the noise of both measurements.
    """
    if json_ and markdown:
        raise UsageError("Give either --json or --markdown, not both.")
    from tgis_cli.bench.compare import compare_results
    from tgis_cli.bench.report.changes import describe_table, write_table
    from tgis_cli.bench.result import drop_nonfinite, read_result

    allowed = read_share(max_regress, "--max-regress")
    table = compare_results(read_result(old), read_result(new), max_regress=allowed, any_shape=any_shape)
    if json_:
        print(json.dumps(drop_nonfinite(table.as_dict()), indent=1))
    elif markdown:
        print(write_table(table), end="")
    else:
        is_colored = has_color(sys.stdout, os.environ)
        print("\n".join(describe_table(table, find_width(sys.stdout), is_colored=is_colored)))
    raise typer.Exit(1 if table.regressions else 0)
