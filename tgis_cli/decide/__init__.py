"""From options and machine to a run: decides what the options leave open, and refuses what cannot work."""
