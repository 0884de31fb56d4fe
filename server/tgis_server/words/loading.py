"""What a server says while it loads its model; clients recognize the sentence."""

from __future__ import annotations

STILL_LOADING = "The model is still loading"
INSPECTING = "inspecting the model"  # what a launcher does before it starts processes


def explain_loading(doing: str) -> str:
    """
    Args:
        doing: what the server is doing, as the end of a sentence.
    """
    return f"{STILL_LOADING}; {doing}. Try again when the health service says SERVING."
