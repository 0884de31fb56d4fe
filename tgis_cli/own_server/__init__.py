"""The server that ``tgis run`` starts for itself: the launcher as its child, the log, the wait, the end."""
