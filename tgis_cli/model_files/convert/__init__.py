"""Conversion of weights and tokenizers to the formats that are served, and of models to ONNX."""
