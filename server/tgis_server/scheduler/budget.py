"""How much prefill fits into a step, in tokens and in predicted seconds.

``StepTimes`` predicts seconds from the times of recent steps, without knowledge of the model or device.
``PrefillBudget`` divides one step among sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TARGET_USE = 0.9  # share of the target; the rest is a margin for errors of the prediction
MIN_PREFILL_SHARE = 0.25  # of the decode rows' seconds; left to prefill even if decode rows alone come near the target
ALLOWANCE_FACTOR = 10.0  # on a busy machine a step can take several times its usual time

MAX_SURPRISE = 3.0  # times that differ from the prediction by more than this factor count less
RECENT = 0.9  # decay of a step's weight with each later step of its kind: about the last ten count
# How strongly each factor keeps its previous value. Attention's factors keep theirs more strongly: they matter only in
# steps with many keys, and a few such steps are enough to learn them.
INERTIA = (1e-3, 1e-3, 1e-2, 1e-1)


@dataclass(slots=True)
class StepLoad:
    """Work of a step, in units whose cost ``StepTimes`` learns."""

    num_tokens: int = 0
    num_products: int = 0  # tokens times keys, summed over rows
    num_keys: int = 0  # read from the cache, once per row
    has_chunks: bool = False  # at least one row has several tokens

    def add_decodes(self, num_rows: int, num_keys: int) -> None:
        """Add rows of one token each, which attend to ``num_keys`` keys in total."""
        self.num_tokens += num_rows
        self.num_products += num_keys
        self.num_keys += num_keys

    def add(self, start: int, num_tokens: int) -> None:
        """Add a row that computes ``num_tokens`` tokens from position ``start`` on."""
        keys = start + num_tokens
        self.num_tokens += num_tokens
        self.num_products += num_tokens * keys
        self.num_keys += keys
        self.has_chunks = self.has_chunks or num_tokens > 1


Matrix = list[list[float]]


class _Recent:
    """Sums of products over recent steps of one kind, for a least-squares fit."""

    def __init__(self) -> None:
        self.products: Matrix = [[0.0] * 4 for _ in range(4)]
        self.sums = [0.0] * 4

    def add(self, values: tuple[float, float, float, float], result: float) -> None:
        """Add one equation: the factors times ``values`` add up to ``result``."""
        for i, value in enumerate(values):
            row = self.products[i]
            for j in range(4):
                row[j] = RECENT * row[j] + value * values[j]
            self.sums[i] = RECENT * self.sums[i] + value * result


class StepTimes:
    """Seconds of a step: ``fixed + a * tokens + b * tokens * keys + c * keys``, with no negative factor.

    Steps with and without chunks are recorded separately, so that a long period of decoding does not erase the cost of
    a prompt's tokens.
    """

    def __init__(self) -> None:
        self._factors = [0.0] * 4
        self._with_chunks, self._without = _Recent(), _Recent()
        self._is_stale = False

    def observe(self, load: StepLoad, seconds: float) -> None:
        """Learn from a step that took ``seconds``; a time that is not positive is ignored."""
        if seconds <= 0.0:
            return
        # Errors are relative to the prediction, so that short and long steps count the same. Outliers count less:
        # other processes may have used the machine.
        scale = min(max(self.predict(load), seconds / MAX_SURPRISE), seconds * MAX_SURPRISE)
        values = (1 / scale, load.num_tokens / scale, load.num_products / scale, load.num_keys / scale)
        (self._with_chunks if load.has_chunks else self._without).add(values, seconds / scale)
        self._is_stale = True

    def predict(self, load: StepLoad) -> float:
        """The time that a step takes, in seconds; 0 before the first observation."""
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
        """Fit by least squares, pulled slightly towards the previous factors."""
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
    """Solve, setting unknowns that would be negative to zero, one by one."""
    free = list(range(len(right)))
    solution = _solve(matrix, right, free)
    while free and min(solution) < 0.0:
        del free[solution.index(min(solution))]
        solution = _solve(matrix, right, free)
    found = dict(zip(free, solution, strict=True))
    return [found.get(i, 0.0) for i in range(len(right))]


def _solve(matrix: Matrix, right: list[float], free: list[int]) -> list[float]:
    """Solve for the ``free`` unknowns; the others are zero. Gaussian elimination of a positive definite matrix."""
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
    """Tokens and seconds that one step has left for prefill.

    Args:
        times: predicts the seconds.
        num_decode_tokens: tokens of the step's decode rows.
        max_share: most tokens for one sequence.
        max_share_s: most seconds for one sequence.
        may_exceed: see :meth:`take`; false in some steps, because the fit needs chunks of different sizes.
    """

    times: StepTimes
    tokens: int
    seconds: float
    num_decode_tokens: int
    max_share: int
    max_share_s: float
    may_exceed: bool = False
    num_chunks: int = field(default=0, init=False)

    @classmethod
    def after_decodes(
        cls,
        times: StepTimes,
        decode: StepLoad,
        max_tokens: int,
        target_s: float,
        *,
        has_others: bool,
        may_exceed: bool = False,
    ) -> PrefillBudget:
        """The budget that a step's decode rows leave.

        Args:
            decode: the load of the decode rows.
            max_tokens: most tokens in the step.
            target_s: most seconds that the step should take.
            has_others: whether each sequence is limited to half of the step.
            may_exceed: see the class.
        """
        decode_s = times.predict(decode)
        seconds = max(MAX_TARGET_USE * target_s - decode_s, MIN_PREFILL_SHARE * decode_s)
        tokens = max_tokens - decode.num_tokens
        if has_others:
            return cls(times, tokens, seconds, decode.num_tokens, max(1, max_tokens // 2), seconds / 2, may_exceed)
        return cls(times, tokens, seconds, decode.num_tokens, max_tokens, seconds, may_exceed)

    def take(self, start: int, remaining: int) -> int:
        """Take tokens for the next chunk of a sequence: all that remain, or a power of two; 0 if the budget is spent.

        The first chunk of a step has at least one token, so that prompts always make progress. With ``may_exceed`` it
        may take twice the time of reading its keys, because smaller chunks would spend most of their time on that.
        """
        most = min(remaining, self.tokens, self.max_share)
        if most <= 0:
            return 0
        most_s = min(self.seconds, self.max_share_s)
        if self.may_exceed and not self.num_chunks:
            most_s = max(most_s, 2 * self.times.predict_keys(start))
        count = most if most == remaining else _floor_power(most)
        while (seconds := self.times.predict_chunk(start, count)) > most_s:
            if count == 1:
                if self.num_chunks:
                    return 0
                break
            count = _floor_power(count - 1)
        self._spend(count, seconds)
        return count

    def take_whole(self, start: int, num_tokens: int) -> bool:
        """Take tokens that cannot be split: those of an encoder, or of a prompt that is computed whole.

        The first such tokens of a step may take as long as they need; if they exceed the tokens left, they run alone.
        """
        seconds = self.times.predict_chunk(start, num_tokens)
        if num_tokens > self.tokens and (self.num_chunks or self.num_decode_tokens):
            return False
        if seconds > self.seconds and self.num_chunks:
            return False
        self._spend(num_tokens, seconds)
        return True

    def needs_step(self, num_tokens: int) -> bool:
        """Whether these tokens, which cannot be split, would fit but for the decode rows."""
        return num_tokens > self.tokens and self.num_decode_tokens > 0 and not self.num_chunks

    def _spend(self, num_tokens: int, seconds: float) -> None:
        self.tokens -= num_tokens
        self.seconds -= seconds
        self.num_chunks += 1


def _floor_power(number: int) -> int:
    """The largest power of two up to ``number``."""
    return 1 << (number.bit_length() - 1)
