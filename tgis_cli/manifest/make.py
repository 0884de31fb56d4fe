"""From the options of a command to the objects of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgis_cli.manifest.explained import Explained
from tgis_cli.manifest.kserve import make_kserve_objects
from tgis_cli.manifest.kubernetes import make_kubernetes_objects
from tgis_cli.manifest.scaling import find_missing_parts
from tgis_cli.manifest.wanted import Wanted, check_launch_options, check_wanted
from tgis_cli.manifest.workload import Workload, decide_workload, with_pod_files
from tgis_cli.plan import open_model
from tgis_server.options import load_config, merge_options

MAKERS = {"deployment": make_kubernetes_objects, "kustomize": make_kubernetes_objects, "kserve": make_kserve_objects}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The objects of a model, each with reasons, in the order in which they are applied."""

    workload: Workload
    objects: tuple[Explained, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.workload.warnings, *find_missing_parts(self.workload.wanted))


def make_manifest(
    wanted: Wanted,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: Path | None = None,
    token: str | None = None,
) -> Manifest:
    """Decide how a cluster serves a model. Reads only its config.json and the headers of its weights.

    Args:
        flags: the launch options, as for ``load_config``.
        token: the hub token, for reading headers now; it is not in the manifest.

    Raises:
        UsageError: options are wrong, or contradict each other.
        ModelError, HubError: the model is not found or cannot be served.
        NotEnoughDevices: it does not fit.
    """
    check_wanted(wanted)
    check_launch_options(merge_options(flags, environ, config_file).config, wanted)
    loaded = load_config(with_pod_files(flags, wanted), environ, config_file)
    with open_model(loaded.config, environ, token) as source:
        workload = decide_workload(wanted, loaded, source, environ)
    return Manifest(workload, tuple(MAKERS[wanted.target](workload)))
