"""The fake engine's door. It needs no weights and also rehearses models that no engine serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tgis_server.engines.door import CpuOps, ModelSummary
from tgis_server.errors import ModelError
from tgis_server.model_files import find_length, read_json


class FakeDoor:
    """Describes a model as the engine that would serve it does.

    Args:
        find_summary: returns that engine's summary; raises ModelError if no engine serves the model.
    """

    def __init__(self, find_summary: Callable[[Path], ModelSummary]) -> None:
        self._find_summary = find_summary

    def summarize(self, model_dir: Path, num_shard: int = 1) -> ModelSummary:
        """Any ``num_shard`` will do, because nothing is divided."""
        try:
            summary = self._find_summary(model_dir)
        except ModelError:
            return summarize_unknown(model_dir)
        return replace(summary, valid_num_shards=(), warnings=())

    def inspect(self, model_dir: Path, num_shard: int) -> ModelSummary:
        """There are no weights to inspect."""
        return self.summarize(model_dir, num_shard)

    def cpu_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Nothing is computed."""
        return {}

    def describe_cpu_ops(self, choice: str, dtype: str, environ: Mapping[str, str]) -> CpuOps:
        """Nothing is computed."""
        return CpuOps("reference", "", "a rehearsal computes nothing")


def summarize_unknown(model_dir: Path) -> ModelSummary:
    """Describe a model by its config.json alone.

    Raises:
        ModelError: the file is missing or broken.
    """
    config = read_json(model_dir / "config.json")
    vocab_size = config.get("vocab_size")
    return ModelSummary(
        kind="encoder_decoder" if config.get("is_encoder_decoder") is True else "decoder",
        family=str(config.get("model_type") or "unknown"),
        layout="",
        vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
        length=find_length(config),
        end_ids=(),
        pad_id=None,
        dtype=None,
        valid_num_shards=(),
        tensors={},
    )
