"""Text that strangers wrote: made safe to print and to store, and judged as a robot's instruction."""

import re
import unicodedata

# Recording tools fill these in, and people leave them. Single words are no instruction anyway.
PLACEHOLDERS = frozenset(
    {
        "a task",
        "default task",
        "describe the task",
        "dummy task",
        "lerobot dataset",
        "lerobot test",
        "my task",
        "sample task",
        "single task",
        "so100 test",
        "so101 test",
        "some task",
        "string task",
        "task desc",
        "task description",
        "task here",
        "task instruction",
        "task name",
        "test test",
        "test dataset",
        "test recording",
        "test task",
        "the task",
        "this is a test",
        "unknown task",
        "untitled task",
        "your task",
        "your task description",
        "your task description here",
        "your task here",
    }
)
# A character of a script that writes no spaces counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


def clean(text: object, limit: int = 200) -> str:
    """Return `text` on one line, without control or formatting characters, at most `limit` characters.

    Terminal escapes, line breaks and bidirectional overrides cannot pass. Rich markup can: whoever prints
    with markup still has to escape it.
    """
    kept = "".join(
        " " if unicodedata.category(character).startswith(("C", "Z")) else character
        for character in str(text)[: 4 * limit]
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def is_instruction(task: str) -> bool:
    """Whether a recorded task text tells a robot what to do: two words or more, and no placeholder."""
    words = [word for word in WORD.findall(task.lower()[:1000]) if not word.isdigit()]
    return len(words) >= 2 and " ".join(words) not in PLACEHOLDERS
