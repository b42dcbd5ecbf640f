"""Addresses of servers, and the user and password that some people write into them.

A password is for requests alone: messages, pages and files get the address that `without_credentials` gives.
"""

import re
from urllib.parse import unquote

# Up to the last @: passwords often hold an @ or a slash that should have been quoted.
_CREDENTIALS = re.compile(r"(?<=//).*@", re.DOTALL)


def without_credentials(address: str) -> str:
    """The address of a server as it may be shown and stored: no user, password, query or fragment."""
    return re.split(r"[?#]", _CREDENTIALS.sub("", address, count=1), maxsplit=1)[0]


def credentials(address: str) -> tuple[str, str] | None:
    """User and password in the address of a server, unquoted; None where it holds neither."""
    found = _CREDENTIALS.search(address)
    if found is None:
        return None
    user, _, password = found[0].removesuffix("@").partition(":")
    return unquote(user), unquote(password)
