"""The fields that all objects of a manifest have."""

from __future__ import annotations

from tgis_cli.manifest.explained import Object, without_none
from tgis_cli.manifest.workload import Workload


def make_object(workload: Workload, api_version: str, kind: str, body: Object, suffix: str = "") -> Object:
    """
    Args:
        suffix: appended to the name of a second object of the same kind.
    """
    metadata = without_none(
        {"name": workload.name + suffix, "namespace": workload.wanted.namespace, "labels": workload.labels}
    )
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}
