"""A run from start to end: prepare, supervise, restart, and tell the orchestrator why it ended."""
