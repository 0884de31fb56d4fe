"""Our parameters, described as slices of checkpoint tensors, and how checkpoints lay these out. No torch."""
