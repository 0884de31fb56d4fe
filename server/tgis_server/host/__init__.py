"""What the operating system and the container offer and allow. Knows nothing of models or requests."""
