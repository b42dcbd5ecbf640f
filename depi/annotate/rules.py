"""The back end `rules`, without a model: it cleans the recorded texts and flags those that need a model."""

import re

from depi.annotate.checks import gives_orders, problems, tidy
from depi.annotate.episode_journal import RULES, Result, now
from depi.annotate.stages import Job
from depi.datasets.judging.instructions import WORD, is_instruction
from depi.datasets.recording.cameras import view_in_name
from depi.hub.names import parse_dataset_id

NEEDS_VLM = "needs_vlm"
_FILE_LIKE = re.compile(r"\S*[_/\\]\S*|\S+\d{2,}\S*")


def annotate_by_rules(job: Job, language: str = "en") -> Result:
    """Tidy the recorded text, or drop it and flag the episode; views are taken from the cameras' names.

    Flags: NEEDS_VLM where the text is dropped, with the reason: `junk` (empty, a placeholder, the name of
    the dataset) or `check:...`.
    """
    text = tidy(job.recorded)
    if is_junk(job.recorded, job.repo_id):
        flags = ["junk"]
    else:
        found = problems(text, language)
        if gives_orders(job.recorded) and "markup" not in found:
            found.append("markup")
        flags = [f"check:{name}" for name in found]
    views = {key: view for key in job.cameras if (view := view_in_name(key)) is not None}
    return Result(
        episode=job.episode,
        revision=job.state,
        backend=RULES,
        model=RULES,
        recorded=job.recorded,
        proposed=None if flags else text,
        task=None if flags else text,
        flags=(NEEDS_VLM, *flags) if flags else (),
        views=views,
        at=now(),
    )


def is_junk(recorded: str, repo_id: str) -> bool:
    """Whether a recorded text is no instruction at all: a placeholder, a single word, or a dataset's name."""
    if not is_instruction(recorded):
        return True
    try:
        name = str(parse_dataset_id(repo_id))
    except ValueError:
        name = repo_id
    spelled = [
        "".join(WORD.findall(text.casefold())) for text in (recorded, name, re.split(r"[/:]", name)[-1])
    ]
    return spelled[0] in spelled[1:] or _FILE_LIKE.fullmatch(recorded.strip()) is not None
