"""The models of the native engine: decoder, encoder-decoder, and their table of rotations."""
