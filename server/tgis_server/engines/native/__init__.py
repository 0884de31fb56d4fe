"""The native engine: one decoder for all model families, with paged keys and values. The package imports no torch."""
