"""The inputs of the decisions in ``resolve.py`` and ``resources.py``, and their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tgis_cli.machine import Machine
from tgis_server.options import LoadedConfig, ServeConfig


@dataclass(slots=True)
class Decisions:
    """Collects reasons and warnings while a run is resolved."""

    loaded: LoadedConfig
    environ: Mapping[str, str]
    machine: Machine
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def config(self) -> ServeConfig:
        return self.loaded.config

    def is_given(self, option: str) -> bool:
        return self.loaded.origins[option] != "default"

    def take_given(self, option: str, name: str = "") -> Any:
        """The value that the user gave for an option; its origin is noted as the reason."""
        self.reasons[name or option] = self.loaded.origins[option]
        return getattr(self.config, option)
