"""Choosing the next token: logits processors, the choice itself, and the token details that requests want."""
