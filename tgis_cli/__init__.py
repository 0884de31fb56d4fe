"""What a person types. Imports no torch; ``tgis_server`` imports nothing from here."""

import tgis_server as tgis_server  # first of all, as it takes the current directory off the module path
