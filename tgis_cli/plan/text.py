"""A plan as text: sections of aligned lines, not wrapped."""

from __future__ import annotations

from collections.abc import Iterator

from tgis_cli.decide.resolve import align, format_value
from tgis_cli.machine.words import count
from tgis_cli.model_files.cache.disk import describe_free_space
from tgis_cli.plan.fit import Fit
from tgis_cli.plan.report import PlanReport
from tgis_server.engines.door import ModelSummary
from tgis_server.words.sizes import format_bytes

MAX_LISTED = 8


def describe_report(report: PlanReport) -> Iterator[str]:
    """All lines except the problem, which goes to stderr."""
    yield f"{report.source.model} ({report.source.where})"
    yield from align(describe_model(report))
    if report.fits:
        yield ""
        yield f"Memory of each shard, on {report.devices.stated or 'this machine'}"
        yield from describe_fits(report)
    if report.inferred:
        yield ""
        yield "What `tgis launch` would choose, and why"
        yield from align(
            (name, format_value(entry["value"]), entry["reason"])
            for name, entry in report.inferred.items()
            if name != "model_dir"  # is in the first line
        )
    if conclusion := list(conclude(report)):
        yield ""
        yield from conclusion


def describe_model(report: PlanReport) -> Iterator[tuple[str, str]]:
    source, weights, summary = report.source, report.weights, report.summary
    if summary is not None:
        yield "architecture", describe_summary(summary)
    if weights is not None:
        by_size = sorted(weights.bytes_by_dtype.items(), key=lambda item: -item[1])
        dtypes = " and ".join(dtype for dtype, _ in by_size)
        yield "parameters", f"{format_count(weights.num_parameters)} in {dtypes}"
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


def describe_fits(report: PlanReport) -> Iterator[str]:
    """A row per number of shards; the chosen one is marked."""
    header = ("shards", "free", "weights", "step", "KV/token", "KV cache", "KV tokens", "longest", "at once")
    yield from align([header, *(describe_fit(fit, is_chosen=fit == report.chosen) for fit in report.fits)])


def describe_fit(fit: Fit, *, is_chosen: bool) -> tuple[str, ...]:
    per_token = f"{fit.kv_bytes_per_token / 1024:.3g} KiB"  # not rounded to an integer, as people multiply it
    needs = (fit.free_bytes, fit.weight_bytes, fit.step_bytes)
    first = (f"{fit.num_shard}{' *' if is_chosen else ''}", *map(format_bytes, needs), per_token)
    if fit.problem is not None:
        return (*first, "-", "-", "-", "does not fit")
    sequences = ", ".join(f"{number:,} x {length:,}" for length, number in fit.sequences.items())
    return (*first, format_bytes(fit.kv_bytes), f"{fit.num_tokens:,}", f"{fit.max_sequence_length:,}", sequences)


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


def format_count(number: int) -> str:
    """``8.03 billion``, ``135 million``, ``12,345``."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"
