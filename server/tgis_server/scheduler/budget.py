"""How much prefill a step takes on: bounded by tokens and by predicted seconds.

``StepTimes`` predicts from what recent steps took, with no knowledge of model or device. ``PrefillBudget`` divides one
step's room among sequences. Plain arithmetic; the scheduler is the only caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TARGET_USE = 0.9  # of the target: the rest is for what a prediction cannot know
MIN_PREFILL_SHARE = 0.25  # of the decode rows' seconds: prefill goes on where they alone come near the target
ALLOWANCE_FACTOR = 10.0  # on a busy machine a step can take several times what it usually takes

MAX_SURPRISE = 3.0  # times what was expected
RECENT = 0.9  # weight of a step when the next one of its kind is seen: about the last ten count
# How strongly what steps do not tell apart keeps its former explanation. Attention's terms more than the others: they
# are small until keys are many, and then seen at once.
INERTIA = (1e-3, 1e-3, 1e-2, 1e-1)


@dataclass(slots=True)
class StepLoad:
    """Operations and bytes of a step, up to factors that ``StepTimes`` learns."""

    num_tokens: int = 0
    num_products: int = 0  # tokens times the keys that each row attends to
    num_keys: int = 0  # read from the cache, once per row
    has_chunks: bool = False  # a row of several tokens

    def add_decodes(self, num_rows: int, num_keys: int) -> None:
        """Rows of one token, with all their keys."""
        self.num_tokens += num_rows
        self.num_products += num_keys
        self.num_keys += num_keys

    def add(self, start: int, num_tokens: int) -> None:
        """A row that computes ``num_tokens`` tokens from position ``start`` on."""
        keys = start + num_tokens
        self.num_tokens += num_tokens
        self.num_products += num_tokens * keys
        self.num_keys += keys
        self.has_chunks = self.has_chunks or num_tokens > 1


Matrix = list[list[float]]


class _Recent:
    """Sums of products over recent steps of one kind: what a least-squares fit needs."""

    def __init__(self) -> None:
        self.products: Matrix = [[0.0] * 4 for _ in range(4)]
        self.sums = [0.0] * 4

    def add(self, values: tuple[float, float, float, float], result: float) -> None:
        """Take in one equation: the factors times ``values`` are ``result``."""
        for i, value in enumerate(values):
            row = self.products[i]
            for j in range(4):
                row[j] = RECENT * row[j] + value * values[j]
            self.sums[i] = RECENT * self.sums[i] + value * result


class StepTimes:
    """Seconds of a step: ``fixed + a * tokens + b * tokens * keys + c * keys``, none of them negative.

    Steps with and without chunks are remembered apart: a long time of mere decoding must not make the cost of a
    prompt's tokens forgotten.
    """

    def __init__(self) -> None:
        self._factors = [0.0] * 4
        self._with_chunks, self._without = _Recent(), _Recent()
        self._is_stale = False

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took ``seconds``; 0 or less tells nothing."""
        if seconds <= 0.0:
            return
        # Errors count in proportion to what was expected: those of short steps as much as those of long ones. What was
        # far off counts less: somebody else may have had the machine.
        scale = min(max(self.predict(load), seconds / MAX_SURPRISE), seconds * MAX_SURPRISE)
        values = (1 / scale, load.num_tokens / scale, load.num_products / scale, load.num_keys / scale)
        (self._with_chunks if load.has_chunks else self._without).add(values, seconds / scale)
        self._is_stale = True

    def predict(self, load: StepLoad) -> float:
        """Seconds of a step; 0 before anything was observed."""
        fixed, per_token, per_product, per_key = self._fit()
        return fixed + per_token * load.num_tokens + per_product * load.num_products + per_key * load.num_keys

    def predict_chunk(self, start: int, num_tokens: int) -> float:
        """Seconds that a chunk adds to a step."""
        _, per_token, per_product, per_key = self._fit()
        keys = start + num_tokens
        return per_token * num_tokens + per_product * num_tokens * keys + per_key * keys

    def predict_keys(self, num_keys: int) -> float:
        """The part of a chunk's seconds that does not depend on its tokens: reading its row's keys."""
        return self._fit()[3] * num_keys

    def _fit(self) -> list[float]:
        """Least squares, pulled a little towards the former factors."""
        if not self._is_stale:
            return self._factors
        self._is_stale = False
        matrix = [
            [x + y for x, y in zip(row, other, strict=True)]
            for row, other in zip(self._with_chunks.products, self._without.products, strict=True)
        ]
        right = [x + y for x, y in zip(self._with_chunks.sums, self._without.sums, strict=True)]
        for i in range(4):
            pull = INERTIA[i] * matrix[i][i]
            right[i] += pull * self._factors[i]
            matrix[i][i] += pull
        self._factors = _solve_non_negative(matrix, right)
        return self._factors


def _solve_non_negative(matrix: Matrix, right: list[float]) -> list[float]:
    """Solve, leaving out one after the other the unknowns that would be negative: they are zero."""
    free = list(range(len(right)))
    solution = _solve(matrix, right, free)
    while free and min(solution) < 0.0:
        del free[solution.index(min(solution))]
        solution = _solve(matrix, right, free)
    found = dict(zip(free, solution, strict=True))
    return [found.get(i, 0.0) for i in range(len(right))]


def _solve(matrix: Matrix, right: list[float], free: list[int]) -> list[float]:
    """Solve the equations of the ``free`` unknowns, the others being zero: Gaussian elimination, positive definite."""
    rows = [[matrix[i][j] for j in free] + [right[i]] for i in free]
    size = len(free)
    for i in range(size):
        pivot = rows[i][i]
        for below in rows[i + 1 :]:
            factor = below[i] / pivot
            for j in range(i, size + 1):
                below[j] -= factor * rows[i][j]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution


@dataclass(slots=True)
class PrefillBudget:
    """What one step can still take on beside its decode rows.

    Args:
        times: predicts.
        tokens: left.
        seconds: left.
        num_beside: tokens of the step's decode rows.
        max_share: most tokens of one sequence.
        max_share_s: most seconds of one sequence.
        may_exceed: see :meth:`take`. Not in every step: chunks of one size would not show what depends on it.
    """

    times: StepTimes
    tokens: int
    seconds: float
    num_beside: int
    max_share: int
    max_share_s: float
    may_exceed: bool = False
    num_chunks: int = field(default=0, init=False)

    @classmethod
    def beside(
        cls,
        times: StepTimes,
        decode: StepLoad,
        max_tokens: int,
        target_s: float,
        *,
        has_others: bool,
        may_exceed: bool = False,
    ) -> PrefillBudget:
        """The room that decode rows leave.

        Args:
            decode: what they compute.
            max_tokens: of the step.
            target_s: longest that the step should take.
            has_others: no sequence gets more than half.
            may_exceed: see the class.
        """
        decode_s = times.predict(decode)
        seconds = max(MAX_TARGET_USE * target_s - decode_s, MIN_PREFILL_SHARE * decode_s)
        tokens = max_tokens - decode.num_tokens
        if has_others:
            return cls(times, tokens, seconds, decode.num_tokens, max(1, max_tokens // 2), seconds / 2, may_exceed)
        return cls(times, tokens, seconds, decode.num_tokens, max_tokens, seconds, may_exceed)

    def take(self, start: int, remaining: int) -> int:
        """Tokens for the next chunk of a sequence: all that remain, or a power of two; 0 if the step has no more room.

        The first chunk of a step has at least one token, so that prompts go on whatever a step takes; and it may take
        twice as long as reading its keys, if ``may_exceed``: smaller ones would spend their time on that.
        """
        most = min(remaining, self.tokens, self.max_share)
        if most <= 0:
            return 0
        room_s = min(self.seconds, self.max_share_s)
        if self.may_exceed and not self.num_chunks:
            room_s = max(room_s, 2 * self.times.predict_keys(start))
        count = most if most == remaining else _floor_power(most)
        while (seconds := self.times.predict_chunk(start, count)) > room_s:
            if count == 1:
                if self.num_chunks:
                    return 0
                break
            count = _floor_power(count - 1)
        self._spend(count, seconds)
        return count

    def take_whole(self, start: int, num_tokens: int) -> bool:
        """Take on tokens that cannot be divided: of an encoder, or of a prompt that is computed whole.

        As the first of a step they may take as long as they need; more of them than are left have a step to themselves.
        """
        seconds = self.times.predict_chunk(start, num_tokens)
        if num_tokens > self.tokens and (self.num_chunks or self.num_beside):
            return False
        if seconds > self.seconds and self.num_chunks:
            return False
        self._spend(num_tokens, seconds)
        return True

    def needs_step(self, num_tokens: int) -> bool:
        """Whether only the decode rows keep these tokens, which cannot be divided, out of the step."""
        return num_tokens > self.tokens and self.num_beside > 0 and not self.num_chunks

    def _spend(self, num_tokens: int, seconds: float) -> None:
        self.tokens -= num_tokens
        self.seconds -= seconds
        self.num_chunks += 1


def _floor_power(number: int) -> int:
    """The largest power of two that is not above ``number``."""
    return 1 << (number.bit_length() - 1)
