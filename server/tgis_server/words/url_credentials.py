"""User and password in a URL: they are for the peer alone, not for logs, files or command lines."""

from __future__ import annotations

import re

# Whatever precedes the last @, so that a password with unescaped marks is not shown either.
URL = re.compile(r"([\w+.-]+://)?(?:(.*)@)?(.*)", re.DOTALL)


def split_credentials(url: str) -> tuple[str, str]:
    """``https://user:word@host`` as ``https://host`` and ``user:word``, which is empty where there is none."""
    scheme, credentials, host = parse(url)
    return scheme + host, credentials


def mask_credentials(url: str) -> str:
    """The URL as people may see it."""
    scheme, credentials, host = parse(url)
    return f"{scheme}***@{host}" if credentials else url


def parse(url: str) -> tuple[str, str, str]:
    match = URL.fullmatch(url)
    assert match is not None, "everything matches"
    return match[1] or "", match[2] or "", match[3]
