"""Models of the native engine."""
