"""The user and password in a URL: they must not appear in logs, files or command lines."""

from __future__ import annotations

import re

# Everything before the last @ is credentials, so a password with unescaped characters is not shown either.
URL = re.compile(r"([\w+.-]+://)?(?:(.*)@)?(.*)", re.DOTALL)


def split_credentials(url: str) -> tuple[str, str]:
    """Split ``https://user:word@host`` into ``https://host`` and ``user:word``, which may be empty."""
    scheme, credentials, host = parse(url)
    return scheme + host, credentials


def mask_credentials(url: str) -> str:
    """The URL with its credentials replaced by ``***``."""
    scheme, credentials, host = parse(url)
    return f"{scheme}***@{host}" if credentials else url


def parse(url: str) -> tuple[str, str, str]:
    match = URL.fullmatch(url)
    assert match is not None, "the pattern matches any text"
    return match[1] or "", match[2] or "", match[3]
