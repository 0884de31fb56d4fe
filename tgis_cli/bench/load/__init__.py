"""Load over the public gRPC API: which requests, when, and what came back."""
