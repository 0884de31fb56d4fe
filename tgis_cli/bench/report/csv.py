"""A result as CSV: one line per figure, in the units of the result file."""

from __future__ import annotations

import csv
import io

from tgis_cli.bench.result import Result, drop_nonfinite

HEADER = ("group", "name", "unit", "value", "low", "high", "count")


def write_csv(result: Result) -> str:
    """What is not known is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for figure in result.figures:
        estimate = figure.estimate
        values = drop_nonfinite([estimate.value, estimate.low, estimate.high])
        writer.writerow([figure.group, figure.name, figure.unit, *values, figure.count])
    return out.getvalue()
