"""What a result is about, in words: the model or server, and the lengths of the requests."""

from __future__ import annotations

from collections.abc import Mapping

from tgis_cli.bench.result import Result


def name_subject(result: Result) -> str:
    """The model, or the server's address where the model is not known; empty where neither is."""
    for key, name in (("model", "name"), ("server", "address")):
        facts = result.fingerprint.get(key)
        if isinstance(facts, Mapping) and facts.get(name):
            return str(facts[name])
    return ""


def describe_lengths(result: Result) -> str:
    """``128 tokens in, 64 out``; empty where the shape does not say so."""
    given, asked = result.shape.get("input_tokens"), result.shape.get("output_tokens")
    parts = [f"{given} tokens in"] if given else []
    if asked:
        parts.append(f"{asked} out" if parts else f"{asked} tokens out")
    return ", ".join(parts)


def describe_subject(result: Result) -> str:
    """``gpt2, 128 tokens in, 64 out``."""
    return ", ".join(filter(None, (name_subject(result), describe_lengths(result))))
