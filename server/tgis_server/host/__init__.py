"""What the operating system and the container provide and allow, independent of models and requests."""
