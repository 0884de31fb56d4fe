"""Lines of the launcher and its children: one format, repetitions, the log file, the status on a terminal."""
