"""Our parameters, described as slices of checkpoint tensors, and the layouts of checkpoints. Imports no torch."""
