"""The command line. Imports no torch; ``tgis_server`` imports nothing from here."""

import tgis_server as tgis_server  # first, because it removes the current directory from the module path
