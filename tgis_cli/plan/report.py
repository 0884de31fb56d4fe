"""The complete plan: facts about the model, how it fits, and what the launcher would choose."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tgis_cli.decide.resolve import Resolved, resolve
from tgis_cli.decide.resources import GPU_LISTS
from tgis_cli.model_files.cache.disk import OTHER_CACHE, check_disk, free_disk_bytes
from tgis_cli.model_files.tokenizer_check import check_tokenizer, load_tokenizer
from tgis_cli.plan.devices import Devices
from tgis_cli.plan.fit import Fit, compare_shards
from tgis_cli.plan.source import ModelSource
from tgis_server.engines.catalogue import find_engine
from tgis_server.engines.door import ModelSummary
from tgis_server.errors import ModelError, NotEnoughDevices, TgisError
from tgis_server.model_files import HEADER_DTYPES, TensorInfo, find_weights, read_headers
from tgis_server.options import LoadedConfig

ABOUT_THIS_MACHINE = ("model_dir", "cpu_ops", "tokenization_workers", "shard_threads", "shard_cpus")
ABOUT_FILES_HERE = ("model_dir",)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights according to their headers."""

    num_parameters: int
    num_bytes: int
    num_files: int
    bytes_by_dtype: dict[str, int]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorInfo]) -> Weights:
        by_dtype: dict[str, int] = {}
        for info in tensors.values():
            dtype = HEADER_DTYPES.get(info.dtype, info.dtype)
            by_dtype[dtype] = by_dtype.get(dtype, 0) + info.num_bytes
        return cls(
            sum(math.prod(info.shape) for info in tensors.values()),
            sum(by_dtype.values()),
            len({info.file for info in tensors.values()}),
            by_dtype,
        )


@dataclass(slots=True)
class PlanReport:
    """A plan; fields stay empty if a problem ends it early."""

    source: ModelSource
    devices: Devices
    weights: Weights | None = None
    summary: ModelSummary | None = None  # from config.json; None: no engine supports the model
    resolved: Resolved | None = None
    fits: list[Fit] = field(default_factory=list)  # by number of shards; empty if no engine supports the model
    chosen: Fit | None = None
    problem: TgisError | None = None  # why startup would fail

    @property
    def free_disk_bytes(self) -> int | None:
        """Free space where a download or a conversion would be written."""
        return free_disk_bytes(self.source.target_dir) if self.source.target_dir else None

    @property
    def inferred(self) -> dict[str, dict[str, Any]]:
        """What the launcher would choose, except for values that depend on another machine or on missing files."""
        found = self.resolved.inferred() if self.resolved else {}
        left_out = ABOUT_THIS_MACHINE if self.devices.stated else ABOUT_FILES_HERE if self.source.is_stand_in else ()
        return {name: entry for name, entry in found.items() if name not in left_out}

    @property
    def verdict(self) -> str:
        if self.problem is not None:
            return "does not fit" if isinstance(self.problem, NotEnoughDevices) else "does not start"
        return "fits with shorter sequences" if self.chosen and self.chosen.notes else "fits"

    @property
    def fewest_shards(self) -> int | None:
        """The smallest number of shards that fits."""
        return next((fit.num_shard for fit in self.fits if fit.problem is None), None)

    def as_dict(self) -> dict[str, Any]:
        source, weights, summary = self.source, self.weights, self.summary
        return {
            "verdict": self.verdict,
            "problem": str(self.problem) if self.problem else None,
            "model": source.model,
            "where": source.where,
            "must_convert": bool(source.convert_bytes),
            "family": summary.family if summary else None,
            "num_parameters": weights.num_parameters if weights else None,
            "weights": {
                "num_bytes": weights.num_bytes,
                "num_files": weights.num_files,
                "bytes_by_dtype": weights.bytes_by_dtype,
            }
            if weights
            else None,
            "disk": {
                "num_bytes": source.num_bytes,
                "download_bytes": source.missing_bytes,
                "convert_bytes": source.convert_bytes,
                "free_bytes": self.free_disk_bytes,
            },
            "valid_num_shards": list(summary.valid_num_shards) if summary else [],
            "fewest_shards": self.fewest_shards,
            "devices": self.devices.stated or "this machine",
            "chosen": self.chosen.as_dict() if self.chosen else None,
            "compared": [fit.as_dict() for fit in self.fits],
            "inferred": self.inferred,
            "warnings": self.resolved.warnings if self.resolved else (),
        }


def make_report(source: ModelSource, devices: Devices, loaded: LoadedConfig, environ: Mapping[str, str]) -> PlanReport:
    """Make a plan; an error that ends it early becomes its ``problem``."""
    report = PlanReport(source, devices)
    try:
        fill_report(report, loaded, environ)
    except TgisError as error:
        report.problem = name_model(error, source)
    return report


def fill_report(report: PlanReport, loaded: LoadedConfig, environ: Mapping[str, str]) -> None:
    source, devices = report.source, report.devices
    with suppress(ModelError):  # problems of the model are reported below, as at startup
        headers = read_headers(source.model_dir, find_weights(source.model_dir))
        report.weights = Weights.of({name: info for header in headers for name, info in header.items()})
    with suppress(ModelError):
        _, report.summary = find_engine(source.model_dir)
    if devices.stated:
        environ = {name: value for name, value in environ.items() if name not in GPU_LISTS}
    config = replace(loaded.config, rehearse=False)  # a rehearsal needs no memory
    if source.is_stand_in:
        config = replace(config, model_name=str(source.model_dir))
    loaded = replace(loaded, config=config)
    report.resolved = resolve_as(loaded, environ, report)
    sizes, summary = report.resolved.sizes, report.summary
    assert sizes is not None, "only a rehearsal has none"
    assert summary is not None, "an engine has been found"
    report.fits = list(compare_shards(report.resolved.run, devices.machine, sizes, summary.valid_num_shards))
    is_given = any(loaded.origins[name] != "default" for name in ("num_shard", "num_gpus"))
    if devices.stated and not is_given and report.fewest_shards is not None and devices.machine.gpus:
        config = replace(config, num_shard=report.fewest_shards)
        origins = {**loaded.origins, "num_shard": "the fewest that hold it"}
        report.resolved = resolve_as(replace(loaded, config=config, origins=origins), environ, report)
    num_shard = report.resolved.run.num_shard
    report.chosen = next(fit for fit in report.fits if fit.num_shard == num_shard)
    if report.chosen.problem is not None:
        raise report.chosen.problem
    if not source.is_on_hub:
        judge_tokenizer(report, source.target_dir or source.model_dir)
    if source.target_dir is not None and not devices.stated:
        otherwise = OTHER_CACHE if source.is_on_hub else "move the model to a larger disk"
        check_disk(source.target_dir, source.missing_bytes + source.convert_bytes, source.model, otherwise)


def judge_tokenizer(report: PlanReport, model_dir: Path) -> None:
    """A damaged tokenizer prevents startup; a missing one only causes a warning, because it can still be made."""
    assert report.resolved is not None, "the plan has been resolved"
    try:
        check_tokenizer(model_dir)
        warnings = load_tokenizer(model_dir)
    except ModelError as error:
        if os.path.lexists(model_dir / "tokenizer.json"):
            raise
        warnings = [str(error)]
    report.resolved = replace(report.resolved, warnings=(*report.resolved.warnings, *warnings))


def resolve_as(loaded: LoadedConfig, environ: Mapping[str, str], report: PlanReport) -> Resolved:
    """What the launcher would choose, with reasons in terms of the user's input."""
    source, devices = report.source, report.devices
    resolved = resolve(loaded, environ, devices.machine)
    reasons = dict(resolved.reasons)
    if devices.stated and loaded.config.device == "auto":
        reasons["device"] = f"stated: {devices.stated}"
    run = replace(resolved.run, model_id=source.model)
    return replace(resolved, run=run, reasons=reasons, warnings=(*resolved.warnings, *devices.warnings))


def name_model(error: TgisError, source: ModelSource) -> TgisError:
    """Replace the temporary directory in an error by the name that the user gave."""
    return type(error)(str(error).replace(str(source.model_dir), source.model)) if source.is_stand_in else error
