"""What the original server's manifests, compose files, env files and command lines mean here. Changes no files.

``read`` finds containers and their settings in any of these, ``examine`` judges them by
``tgis_cli.decide.legacy_settings``, and ``advice`` looks at their surroundings.
"""

from tgis_cli.migrate.examine import Finding, MigrationReport, examine_all
from tgis_cli.migrate.read import SettingsFile, read_containers, read_settings_file

__all__ = ["Finding", "MigrationReport", "SettingsFile", "examine_all", "read_containers", "read_settings_file"]
