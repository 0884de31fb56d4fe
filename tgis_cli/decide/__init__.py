"""From options and machine to a run: what is left open is decided here, and refused before anything starts."""
