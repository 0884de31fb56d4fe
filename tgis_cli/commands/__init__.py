"""One file per command, imported only when the command runs (see ``tgis_cli/app.py``)."""
