"""Choosing the next token: logits processors, the choice itself, and the facts about tokens that requests ask for."""
