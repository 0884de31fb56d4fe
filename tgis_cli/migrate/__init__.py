"""What a manifest, compose file, env file or command line of the original means here. Reads files; changes nothing.

``read`` finds containers and their settings in whatever is given, ``examine`` judges them by
``tgis_cli.decide.legacy_settings``, and ``advise`` looks at what stands around them.
"""

from tgis_cli.migrate.examine import Finding, Report, examine_all
from tgis_cli.migrate.read import Source, read_containers, read_source

__all__ = ["Finding", "Report", "Source", "examine_all", "read_containers", "read_source"]
