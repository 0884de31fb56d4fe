"""A model's safetensors files: inspected without torch by commands and ranks, and read by ranks."""
