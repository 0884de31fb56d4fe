"""What a manifest, compose file, env file or command line of the original means here. Reads files; changes nothing.

``read`` finds containers and their settings in whatever is given, ``examine`` judges them by
``tgis_cli.decide.legacy_settings``, and ``advise`` looks at what stands around them.
"""

from tgis_cli.migrate.examine import Finding, MigrationReport, examine_all
from tgis_cli.migrate.read import SettingsFile, read_containers, read_settings_file

__all__ = ["Finding", "MigrationReport", "SettingsFile", "examine_all", "read_containers", "read_settings_file"]
