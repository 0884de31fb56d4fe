"""Our own engine: one spec-driven decoder with paged keys and values. Importing this package does not import torch."""
