"""Lists of numbers on the command line: ``1,8,32``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from tgis_server.errors import UsageError

Number = TypeVar("Number", int, float)


def read_list(
    text: str, flag: str, number: Callable[[str], Number], wanted: str, most: float = math.inf
) -> tuple[Number, ...]:
    """
    Args:
        number: ``int`` or ``float``.
        wanted: what they must be, with an example: "whole numbers of streams above 0, such as 1,8,32".

    Raises:
        UsageError: they are not numbers above 0, one is above ``most``, or two are equal.
    """
    try:
        numbers = tuple(number(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < each < math.inf for each in numbers):
        raise UsageError(f"{flag} is {text!r}, but must be {wanted}.")
    if max(numbers) > most:
        raise UsageError(f"{flag} is {text}, but may be at most {most:,}.")
    if twice := next((each for each in numbers if numbers.count(each) > 1), None):
        raise UsageError(f"{flag} is {text}, which names {twice:g} twice: leave one of them out.")
    return numbers
