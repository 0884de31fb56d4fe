"""Kubernetes objects that serve a model, from the launch options and the arithmetic of a plan. Nothing is applied.

One :class:`Workload` is decided first; pure functions turn it into the objects of a target, with comments that explain
their numbers.
"""

from tgis_cli.manifest.make import Manifest, make_manifest
from tgis_cli.manifest.output import write_manifest
from tgis_cli.manifest.wanted import Wanted
from tgis_cli.manifest.yaml_text import to_json, to_yaml

__all__ = ["Manifest", "Wanted", "make_manifest", "to_json", "to_yaml", "write_manifest"]
