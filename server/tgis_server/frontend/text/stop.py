"""Finds stop sequences in text that arrives in pieces.

The sequences form an automaton over characters (Aho and Corasick, 1975): its state after a character is the longest
suffix of the text that may still become a stop sequence. So the result depends on the text alone, not on its division
into tokens, and each character costs constant time. The module knows nothing of tokens and requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    depth: int  # characters of a stop sequence that have been read
    next: dict[str, _State] = field(default_factory=dict)
    fallback: _State | None = None  # the longest proper suffix that is a state; None for the root
    match: str = ""  # the longest stop sequence that ends here
    held: int = 0  # characters at the end of the text that may still become part of a match


class StopSequences:
    """The stop sequences of a call, compiled once and shared by the matchers of its inputs."""

    def __init__(self, sequences: Sequence[str]) -> None:
        """``sequences`` contains no empty strings."""
        self.root = _build(sequences)


class StopMatcher:
    """Finds the first stop sequence completed in one output; if several are completed together, it finds the longest.

    Text is held back only while it may become part of a match that would be cut off. If the sequence stays in the
    output (``include``), nothing is held back.
    """

    def __init__(self, sequences: StopSequences, *, include: bool) -> None:
        self._root = sequences.root
        self._state = self._root
        self._include = include
        self._held = ""

    def push(self, text: str, *, can_match: bool = True) -> tuple[str, str]:
        """Add text to the output.

        Args:
            text: the text of the newest token.
            can_match: whether a sequence completed here counts; if not, it is not found later either.

        Returns:
            The text that may be sent now, and the stop sequence that was found, or ``""``. After a match the output is
            complete: the rest of ``text`` is dropped and the matcher must not be used again.
        """
        pending = self._held + text
        num_before = len(self._held)
        state = self._state
        for position, character in enumerate(text, start=num_before + 1):
            state = self._advance(state, character)
            if state.match and can_match:
                end = position if self._include else position - len(state.match)
                self._held = ""
                return pending[:end], state.match
        self._state = state
        num_held = 0 if self._include else state.held
        border = len(pending) - num_held
        self._held = pending[border:]
        return pending[:border], ""

    def flush(self) -> str:
        """End the output without a match; return the text that was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, state: _State, character: str) -> _State:
        while (following := state.next.get(character)) is None:
            if state.fallback is None:
                return self._root
            state = state.fallback
        return following


def _build(sequences: Sequence[str]) -> _State:
    root = _State(depth=0)
    for sequence in sequences:
        state = root
        for character in sequence:
            state = state.next.setdefault(character, _State(state.depth + 1))
        state.match = sequence

    queue = deque([root])
    while queue:  # breadth first: the fallbacks of shorter states are known when a longer one needs them
        state = queue.popleft()
        for character, child in state.next.items():
            fallback = state.fallback
            while fallback is not None and character not in fallback.next:
                fallback = fallback.fallback
            child.fallback = root if fallback is None else fallback.next[character]
            child.match = child.match or child.fallback.match
            # A state without successors can only continue through its fallback: its own text cannot become a match.
            child.held = child.depth if child.next else child.fallback.held
            queue.append(child)
    return root
