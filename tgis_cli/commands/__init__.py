"""One file per command; each is imported only when its command is used (``tgis_cli/app.py``)."""
