"""The token for gated and private models: an option, or the one that huggingface_hub finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal

from tgis_server.errors import HubError, UsageError

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
WORKER_VARIABLE = "TGIS_HUB_TOKEN"  # in the environment, as command lines can be read by every user

HubToken = str | Literal[False] | None  # None: the library's own; False: no token


def find_token(given: str | None, environ: Mapping[str, str], tell: Callable[[str], None]) -> HubToken:
    """The token to pass to the library.

    Args:
        given: on the command line; surrounding white space, as from a secret's file, is stripped.
        tell: called with a sentence if the library's token file cannot be read.

    Raises:
        UsageError: the text cannot be a token. The message does not contain it.
        HubError: the library cannot get the token that it is configured to use.
    """
    # Otherwise the library fetches, in every process, a list of programs for its telemetry.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_token

    for source, text in (("--token", given), *((name, environ.get(name)) for name in VARIABLES)):
        token = (text or "").strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"{source} is not a hub token: it has invalid characters. Copy it again.")
        if token and source == "--token":
            return token
    try:
        get_token()
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            tell(f"{error.filename} cannot be read ({error.strerror}): continuing without a token")
            return False
        raise HubError(
            f"huggingface_hub finds no token ({type(error).__name__}): check HF_OIDC_RESOURCE, or set HF_TOKEN."
        ) from error
    return None


def export_token(token: HubToken) -> dict[str, str]:
    """Environment variables that pass the token to a worker."""
    return {} if token is None else {WORKER_VARIABLE: token or ""}


def inherited_token() -> HubToken:
    """The token that :func:`export_token` passed to this process."""
    text = os.environ.get(WORKER_VARIABLE)
    return text or (None if text is None else False)
