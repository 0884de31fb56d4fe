"""Writes the lines of the launcher and its children: one format, repetitions withheld, a log file, a live status."""
