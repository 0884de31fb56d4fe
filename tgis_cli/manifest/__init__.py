"""The Kubernetes objects that serve a model, from the launch options and the sizes that ``tgis plan`` computes.

First one :class:`Workload` is decided; pure functions then turn it into the objects of a target, with comments that
explain the numbers.
"""

from tgis_cli.manifest.make import Manifest, make_manifest
from tgis_cli.manifest.output import write_manifest
from tgis_cli.manifest.wanted import Wanted
from tgis_cli.manifest.yaml_text import to_json, to_yaml

__all__ = ["Manifest", "Wanted", "make_manifest", "to_json", "to_yaml", "write_manifest"]
