"""A run from start to end: prepare, supervise, restart, and report to the orchestrator why it ended."""
