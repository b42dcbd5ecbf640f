"""The prompts: text files of the package, or of a folder that the user names, and their versions.

`system.txt` comes first in every request; `instruction.txt`, `refinement.txt` and `views.txt` are the
stages. In them `$recorded`, `$language`, `$instruction`, `$objects`, `$cameras` and `$names` are filled in
(`$$` is a dollar sign). Untrusted text is filled in once, on one line, without angle brackets, so that it
cannot close the delimiters around it or add a placeholder.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from depi.catalog.text import clean
from depi.errors import UserError

INSTRUCTION, REFINEMENT, VIEWS = STAGES = ("instruction", "refinement", "views")
SYSTEM = "system"
FOLDER = Path(__file__).parent / "prompts"
_PLACEHOLDERS = {
    SYSTEM: set(),
    INSTRUCTION: {"recorded", "language"},
    REFINEMENT: {"instruction", "objects", "language"},
    VIEWS: {"cameras", "names"},
}
_NEEDED = {REFINEMENT: {"instruction"}, VIEWS: {"cameras"}}
MAX_BYTES = 32_768
MAX_DATA = 400
LANGUAGES = {
    "en": "English",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pt": "Portuguese",
    "zh": "Chinese",
}


@dataclass(frozen=True)
class Prompts:
    """The texts by stage, with SYSTEM, the language of the answers, and each stage's version.

    versions: stage -> digest of its text, the system text and the language; the same version is the same
        question
    """

    texts: Mapping[str, str]
    language: str
    versions: Mapping[str, str]

    def render(self, stage: str, **data: str) -> str:
        """A stage's text with its data filled in; the data are cleaned first."""
        safe = {name: as_data(value) for name, value in data.items()}
        return Template(self.texts[stage]).substitute(safe, language=LANGUAGES[self.language])


def load_prompts(folder: Path | None = None, language: str = "en") -> Prompts:
    """Read the prompts; a file that `folder` lacks is the package's own.

    Args:
        folder: the user's, if any.
        language: one of LANGUAGES.

    Raises:
        UserError: a file is not text, too long, or has a placeholder that its stage does not fill in.
    """
    if language not in LANGUAGES:
        raise UserError(f"--language={language} is none of {', '.join(LANGUAGES)}")
    if folder is not None and not folder.is_dir():
        raise UserError(f"--prompts={folder} is not a folder")
    texts = {stage: _read(stage, folder) for stage in (SYSTEM, *STAGES)}
    if folder is not None and not any((folder / f"{stage}.txt").is_file() for stage in texts):
        raise UserError(f"--prompts={folder} holds none of {', '.join(f'{stage}.txt' for stage in texts)}")
    versions = {stage: _version(texts[SYSTEM], texts[stage], language) for stage in STAGES}
    return Prompts(texts, language, versions)


def as_data(text: str) -> str:
    """Untrusted text, on one line of at most MAX_DATA characters and without angle brackets."""
    return clean(text, MAX_DATA).replace("<", "(").replace(">", ")")


def as_list(items: list[str]) -> str:
    """Several texts as one line of JSON."""
    return json.dumps([clean(item, 80) for item in items[:20]], ensure_ascii=False)


def _version(*texts: str) -> str:
    """Only the texts count, not the code as in `depi.fingerprint`: to ask a model again costs money."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()


def _read(stage: str, folder: Path | None) -> str:
    path = FOLDER / f"{stage}.txt"
    if folder is not None and (folder / path.name).is_file():
        path = folder / path.name
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    if not text or len(text.encode()) > MAX_BYTES:
        raise UserError(f"{path} is empty or longer than {MAX_BYTES} bytes")
    template = Template(text)
    if not template.is_valid():
        raise UserError(f"{path} has a $ that starts no placeholder: write $$ for a dollar sign")
    found = set(template.get_identifiers())
    if unknown := found - _PLACEHOLDERS[stage]:
        raise UserError(f"{path}: ${min(unknown)} is not filled in there")
    if missing := _NEEDED.get(stage, set()) - found:
        raise UserError(f"{path} must hold ${min(missing)}")
    return text
