"""Finds the root cause of a failure from the evidence, and states it in one sentence."""
