"""From the evidence of a failure to its first cause, in one sentence."""
