"""Other formats of weights and tokenizers to those that are served."""
