"""What a person types. Imports no torch; ``tgis_server`` imports nothing from here."""
