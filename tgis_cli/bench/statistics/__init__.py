"""From measurements to claims: percentiles, rates and comparisons, each with what it can and cannot show."""
