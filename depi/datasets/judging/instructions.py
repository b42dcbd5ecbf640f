"""Whether a recorded task text is one that a robot can follow."""

import re

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


def is_instruction(task: str) -> bool:
    """Whether a recorded task text is an instruction: two words or more, and not a placeholder."""
    words = [word for word in WORD.findall(task.lower()[:1000]) if not word.isdigit()]
    return len(words) >= 2 and " ".join(words) not in PLACEHOLDERS
