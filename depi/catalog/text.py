"""Untrusted text: made safe to print and to store, and judged as a robot's instruction."""

import re
import unicodedata

# Default texts of recording tools. Single words do not count as instructions anyway.
PLACEHOLDERS = frozenset(
    {
        *("a task", "default task", "describe the task", "dummy task", "lerobot dataset"),
        *("lerobot test", "my task", "sample task", "single task", "so100 test"),
        *("so101 test", "some task", "string task", "task desc", "task description"),
        *("task here", "task instruction", "task name", "test test", "test dataset"),
        *("test recording", "test task", "the task", "this is a test", "unknown task"),
        *("untitled task", "your task", "your task description"),
        *("your task description here", "your task here"),
    }
)
# A character of a script without spaces between words counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


def clean(text: object, limit: int = 200) -> str:
    """Return `text` on one line, without control or formatting characters, at most `limit` characters.

    Terminal escapes, line breaks and bidirectional overrides cannot pass. Rich markup can, and must be
    escaped where it is printed.
    """
    kept = "".join(
        " " if unicodedata.category(character).startswith(("C", "Z")) else character
        for character in str(text)[: 4 * limit]
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def is_instruction(task: str) -> bool:
    """Whether a recorded task text is an instruction: two words or more, and not a placeholder."""
    words = [word for word in WORD.findall(task.lower()[:1000]) if not word.isdigit()]
    return len(words) >= 2 and " ".join(words) not in PLACEHOLDERS
