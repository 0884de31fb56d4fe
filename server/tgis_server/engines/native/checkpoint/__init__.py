"""A model's safetensors files: inspected without torch by commands and ranks, read by ranks."""
