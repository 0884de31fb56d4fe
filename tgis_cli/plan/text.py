"""A plan as text: sections of aligned lines, wrapped at the terminal's width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tgis_cli.decide.resolve import format_value
from tgis_cli.machine.words import count
from tgis_cli.model_files.cache.disk import describe_free_space
from tgis_cli.plan.fit import Fit
from tgis_cli.plan.report import PlanReport
from tgis_server.engines.door import ModelSummary
from tgis_server.words.layout import lay_out, wrap
from tgis_server.words.sizes import format_bytes

MAX_LISTED = 8
HANGING = "    "  # before the further lines of a sentence


def describe_report(report: PlanReport, width: int | None = None) -> Iterator[str]:
    """All lines except the problem, which goes to stderr.

    Args:
        width: the terminal's width; ``None`` leaves lines whole.
    """
    yield from wrap(f"{report.source.model} ({report.source.where})", width, rest=HANGING)
    yield from lines_of(describe_model(report), width)
    if report.fits:
        yield ""
        yield from wrap(f"Memory of each shard, on {report.devices.stated or 'this machine'}", width, rest=HANGING)
        yield from describe_fits(report, width)
    if report.inferred:
        yield ""
        yield "What `tgis launch` would choose, and why"
        yield from lines_of(
            (
                (name, format_value(entry["value"]), entry["reason"])
                for name, entry in report.inferred.items()
                if name != "model_dir"  # is in the first line
            ),
            width,
        )
    if conclusion := list(conclude(report)):
        yield ""
        for sentence in conclusion:
            yield from wrap(sentence, width, rest=HANGING)


def lines_of(rows: Iterable[Sequence[str]], width: int | None) -> Iterator[str]:
    return (line for lines in lay_out(rows, width) for line in lines)


def describe_model(report: PlanReport) -> Iterator[tuple[str, str]]:
    source, weights, summary = report.source, report.weights, report.summary
    if summary is not None:
        yield "architecture", describe_summary(summary)
    if weights is not None:
        by_size = sorted(weights.bytes_by_dtype.items(), key=lambda item: -item[1])
        dtypes = " and ".join(dtype for dtype, _ in by_size)
        yield "parameters", f"{format_large(weights.num_parameters)} in {dtypes}"
        is_guess = source.is_on_hub and source.convert_bytes
        files = "estimated from config.json" if is_guess else f"in {count(weights.num_files, 'file')}"
        yield "weights", f"{format_bytes(weights.num_bytes)} {files}"
    else:
        yield "parameters", "unknown, as no headers were found"
    yield "disk", describe_disk(report)
    if summary is not None:
        valid = summary.valid_num_shards
        yield "shards", ", ".join(map(str, valid[:MAX_LISTED])) + (", ..." if len(valid) > MAX_LISTED else "")


def describe_summary(summary: ModelSummary) -> str:
    made_for = f", made for {summary.length.num_tokens:,} tokens" if summary.length else ""
    return f"{summary.family}, {summary.layout}, vocabulary of {summary.vocab_size:,}{made_for}"


def describe_disk(report: PlanReport) -> str:
    source = report.source
    parts = [format_bytes(source.num_bytes)]
    if source.missing_bytes:
        parts += [f"{format_bytes(source.missing_bytes)} of which must be downloaded to {source.target_dir}"]
    if source.convert_bytes:
        parts += [f"{format_bytes(source.convert_bytes)} more once converted to safetensors, which serving needs"]
    if source.target_dir is not None:
        parts += [f"{describe_free_space(report.free_disk_bytes)} there"]
    return ", ".join(parts)


def describe_fits(report: PlanReport, width: int | None) -> Iterator[str]:
    """A column per number of shards, the chosen one marked; as many side by side as the width allows."""
    dtype = report.resolved.run.dtype if report.resolved else ""
    chosen = report.chosen if len(report.fits) > 1 else None
    columns = [describe_fit(fit, dtype, is_chosen=fit == chosen) for fit in report.fits]
    names = list(dict.fromkeys(name for column in columns for name in column))
    while columns:
        size = next((size for size in range(len(columns), 1, -1) if is_narrow(names, columns[:size], width)), 1)
        yield from lines_of(make_rows(names, columns[:size]), width)
        columns = columns[size:]
        if columns:
            yield ""


def make_rows(names: Sequence[str], columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
    return [[name, *(column.get(name, "-") for column in columns)] for name in names]


def is_narrow(names: Sequence[str], columns: Sequence[Mapping[str, str]], width: int | None) -> bool:
    """Whether no row has to be wrapped."""
    rows = make_rows(names, columns)
    return width is None or max(map(len, lines_of(rows, None))) <= width


def describe_fit(fit: Fit, dtype: str, *, is_chosen: bool) -> dict[str, str]:
    """The values of a number of shards, by name.

    Args:
        dtype: the one of the computation; the files may have another.
    """
    facts = {
        "shards": f"{fit.num_shard}{' (chosen)' if is_chosen else ''}",
        "free": format_bytes(fit.free_bytes),
        f"weights, {dtype}": format_bytes(fit.weight_bytes),
        "step": format_bytes(fit.step_bytes),
        "KV/token": f"{fit.kv_bytes_per_token / 1024:.3g} KiB",  # not rounded to an integer, because people multiply it
    }
    if fit.problem is not None:
        return {**facts, "KV cache": "does not fit"}
    longest, *others = fit.sequences.items()
    return {
        **facts,
        "KV cache": format_bytes(fit.kv_bytes),
        "KV tokens": f"{fit.num_tokens:,}",
        "longest sequence": f"{longest[0]:,}",
        "at once, of that length": f"{longest[1]:,}",
        **{f"at once, of {length:,} tokens": f"{number:,}" for length, number in others},
    }


def conclude(report: PlanReport) -> Iterator[str]:
    """Warnings, the verdict, and the next step."""
    yield from (f"warning: {warning}" for warning in (report.resolved.warnings if report.resolved else ()))
    chosen = report.chosen
    if report.problem is None and chosen is not None:
        yield from chosen.notes
        length = f"{chosen.max_sequence_length:,}"
        once = ", once `tgis convert-to-safetensors` has converted it" if report.source.convert_bytes else ""
        yield f"It {report.verdict}{once}: --num-shard {chosen.num_shard}, sequences of up to {length} tokens."
    elif report.fewest_shards is not None and (chosen is None or chosen.problem is not None):
        yield f"It would fit with --num-shard {report.fewest_shards}."
    if report.source.is_on_hub and report.problem is None:
        yield f"Download it with `tgis download-weights {report.source.model}`."


def format_large(number: int) -> str:
    """``8.03 billion``, ``135 million``, ``12,345``."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"
