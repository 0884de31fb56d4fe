"""From measurements to claims: percentiles, rates, windows and comparisons, each with what it can and cannot show."""
