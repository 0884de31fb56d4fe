"""The token that opens gated and private models: an option, or whatever huggingface_hub finds by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal

from tgis_server.errors import HubError, UsageError

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PASSED_ON = "TGIS_HUB_TOKEN"  # to workers, in the environment: command lines can be read by everybody

HubToken = str | Literal[False] | None  # None: the library's own, False: none at all


def find_token(given: str | None, environ: Mapping[str, str], tell: Callable[[str], None]) -> HubToken:
    """What to give to the library.

    Args:
        given: on the command line; white space around it, as files of secrets have it, is no part of it.
        tell: gets a sentence if a token cannot be read.

    Raises:
        UsageError: it can be no token. Its text is not told.
        HubError: the library cannot get the one that it is told to use.
    """
    # Else the library asks the hub, in every process, for a list of programs that it could report to be run by.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_token

    for source, text in (("--token", given), *((name, environ.get(name)) for name in VARIABLES)):
        token = (text or "").strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"{source} is no token of a hub, as it has characters that no token has: copy it again.")
        if token and source == "--token":
            return token
    try:
        get_token()
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            tell(f"{error.filename} cannot be read ({error.strerror}): going on without a token")
            return False
        raise HubError(
            f"huggingface_hub finds no token ({type(error).__name__}): check HF_OIDC_RESOURCE, or set HF_TOKEN."
        ) from error
    return None


def export_token(token: HubToken) -> dict[str, str]:
    """The environment by which a worker gets it."""
    return {} if token is None else {PASSED_ON: token or ""}


def inherited_token() -> HubToken:
    """What :func:`export_token` has passed on to this process."""
    text = os.environ.get(PASSED_ON)
    return text or (None if text is None else False)
