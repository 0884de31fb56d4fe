"""``tgis top``: a running server at a glance, from its HTTP port and, on this machine, from its processes."""
