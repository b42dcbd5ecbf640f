"""Untrusted text, made safe to print and to store."""

from depi.errors import without_controls


def clean(text: object, limit: int = 200) -> str:
    """Return `text` on one line, without control or formatting characters, at most `limit` characters.

    Terminal escapes, line breaks and bidirectional overrides cannot pass. Rich markup can, and must be
    escaped where it is printed.
    """
    line = " ".join(without_controls(str(text)[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def in_markdown(text: object, limit: int = 100) -> str:
    """Untrusted text as a code span of Markdown, also in a table: no markup, HTML or link in it is one.

    What could end the span or the cell of a table is replaced. Nothing for an empty text.
    """
    line = clean(text, limit).translate(_ENDS)
    return f"`{line}`" if line else ""


_ENDS = str.maketrans({"`": "'", "|": "/", "\\": "/"})
