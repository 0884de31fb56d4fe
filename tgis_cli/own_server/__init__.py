"""The server that ``tgis run`` starts for itself: launching it as a child, its log, waiting for it, and ending it."""
