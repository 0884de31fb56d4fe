"""Checks of the model that would be served: whether it is complete, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator

from tgis_cli.decide.preflight import check_memory
from tgis_cli.doctor.verdict import Subject, Verdict, fail, failed, ok, warn
from tgis_cli.model_files.tokenizer_check import load_tokenizer
from tgis_server.errors import TgisError
from tgis_server.words.sizes import format_bytes


def check_model(subject: Subject) -> Iterator[Verdict]:
    """The model's files, found and read as at startup."""
    if subject.problem is not None:
        yield failed(subject.problem) if isinstance(subject.problem, TgisError) else fail(str(subject.problem))
    if subject.resolved is None:
        return
    run = subject.resolved.run
    yield from map(warn, subject.resolved.warnings)
    try:
        yield from map(warn, load_tokenizer(run.model_dir))
    except TgisError as error:
        yield failed(error)
    yield ok(
        f"{run.model_id} is in {run.model_dir}; the {run.engine} engine serves it as {run.dtype} on {run.device}.",
        model_dir=str(run.model_dir),
        engine=run.engine,
    )


def check_fit(subject: Subject) -> Iterator[Verdict]:
    """Whether weights, a step and a sequence fit into free memory, by estimate."""
    resolved = subject.resolved
    if resolved is None or resolved.sizes is None:
        return
    from tgis_cli.plan.fit import fit_shards

    run, machine = resolved.run, subject.machine
    if run.device == "cuda" and not all(gpu.total_bytes for gpu in machine.gpus[: run.num_shard]):
        yield ok("Whether it fits is unknown: the driver does not report the GPUs' memory.")
        return
    try:
        check_memory(run, machine, resolved.sizes)
        fit = fit_shards(run, machine, resolved.sizes)
    except TgisError as error:
        yield failed(error)
        return
    facts = fit.as_dict()
    if fit.problem is not None:
        yield warn(f"The server will probably fail to start: {fit.problem}", **facts)
        return
    sentence = (
        f"It fits: {format_bytes(fit.weight_bytes)} of weights and memory for {fit.num_tokens:,} tokens on each shard, "
        f"where {format_bytes(fit.free_bytes)} is free."
    )
    yield ok(" ".join((sentence, *fit.notes)), **facts)
