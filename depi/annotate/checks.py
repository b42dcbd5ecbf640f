"""Checks of an instruction, whoever wrote it, and of recorded texts before a model sees them.

None of them asks a model. What they find is named by a short word, which goes into an episode's flags.
"""

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from depi.annotate.consistency import gist
from depi.annotate.verbs import starts_with_verb
from depi.catalog.text import clean
from depi.datasets.judging.instructions import WORD

MIN_WORDS, MAX_WORDS, MAX_CHARS = 2, 40, 240
STABLE = 0.999
_SENTENCE_END = re.compile(r"[.!?;。！？](?=\s+[^\W\d])|[\r\n]|[。！？](?=\S)")
_META = re.compile(
    r"\b(?:the|this|these|those|each|in|first|last|final|provided|given)\s+"
    r"(?:videos?|footage|clips?|images?|frames|recordings?|screenshots?|cameras?|moments?|json|prompt)\b"
    r"|\bthe (?:robot|arm|robot(?:ic)? arm|gripper|operator|person) (?:is|was|has|appears|picks|moves)\b"
    r"|\bi (?:see|can|cannot|can't|am|think|believe|would|will|observe)\b|\bas an ai\b|\bi'm\b|\bsorry\b"
    r"|\b(?:appears?|seems?) to\b|\b(?:un)?able to (?:see|determine|tell)\b|\b(?:unknown|unclear)\b"
    r"|\b(?:instruction|answer|task|output)\s*:|\b(?:system prompt|previous instructions?|language model)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[{}<>\[\]`\\|]|https?:|www\.|\*\*|\bimport \w|\$\(")
_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,60}\b(?:instruction|prompt|rule|above|previous|prior)"
    r"|\b(?:system|assistant|user|developer)\s*(?::|prompt\b|message\b)|<\s*/?\s*(?:recorded|draft|names|system)"
    r"|\b(?:answer|reply|respond|output|print|say)\b.{0,30}(?:[\"'“‘{]|\bwith\b|\bjson\b|\bexactly\b)"
    r"|\byou (?:are|must|should|will|have to)\b|\bas an ai\b|\bjailbreak|\bnew instructions?\b"
    r"|[\"'](?:instruction|confidence|views|objects|task)[\"']\s*:|<\|[^|]{0,40}\|>|\[/?INST\]|```",
    re.IGNORECASE | re.DOTALL,
)
_ENGLISH = frozenset({"the", "a", "an", "and", "of", "to", "in", "on", "into", "onto", "from", "it", "up"})
_FOREIGN_WORDS = """
    der das dem und mit auf ein eine einen von nimm lege zum zur
    le la les une dans sur et avec puis du
    el los las una con y
    il lo nella sul della
    um uma os com
    het een naar op en
"""
_FOREIGN = frozenset(_FOREIGN_WORDS.split())
_SCRIPTS = {"ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL", "CJK"), "zh": ("CJK",)}


def tidy(text: str) -> str:
    """A text on one line, without quotes around it, with a capital first letter and one full stop."""
    line = clean(text, MAX_CHARS + 10).strip("\"'“”‘’` ").rstrip(" .!,;:")
    if not line:
        return ""
    end = "" if unicodedata.category(line[-1]) == "Lo" else "."
    return line[0].upper() + line[1:] + end


def problems(text: str, language: str = "en") -> list[str]:
    """What is wrong with an instruction: nothing, or some of `empty`, `length`, `sentences`, `meta`,
    `markup`, `verb` and `language`.

    `verb` is checked of English only; of other languages `language` says that the text looks English or is
    written in another script.
    """
    words = WORD.findall(text.casefold())
    if not words:
        return ["empty"]
    found = {
        "length": not MIN_WORDS <= len(words) <= MAX_WORDS or len(text) > MAX_CHARS,
        "sentences": _SENTENCE_END.search(text.strip()) is not None,
        "meta": _META.search(text) is not None,
        "markup": _MARKUP.search(text) is not None or gives_orders(text),
        "verb": language == "en" and not starts_with_verb(words),
        "language": not _speaks(text, words, language),
    }
    return [name for name, wrong in found.items() if wrong]


def _speaks(text: str, words: Sequence[str], language: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    scripts = _SCRIPTS.get(language, ("LATIN",))
    own = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    if own < 0.7 * len(letters):
        return False
    english, foreign = sum(word in _ENGLISH for word in words), sum(word in _FOREIGN for word in words)
    if language == "en":
        return foreign < max(1, english)
    return language in _SCRIPTS or not (english >= 2 and starts_with_verb(list(words)))


def gives_orders(text: str) -> bool:
    """Whether a recorded text gives orders to the model (prompt injection); no model is then shown it."""
    plain = unicodedata.normalize("NFKC", text)
    return _ORDERS.search(plain) is not None


def denied_objects(instruction: str, not_seen: Sequence[str]) -> list[str]:
    """The objects that the instruction names although the refinement did not see them."""
    named = set(gist(instruction))
    return [item for item in not_seen if (words := gist(item)) and named.issuperset(words)]


def similarity(one: str, other: str) -> float:
    """How alike two instructions are, 0..1; STABLE and more where only the wording differs."""
    first, second = gist(one), gist(other)
    return 1.0 if first == second else SequenceMatcher(None, first, second, autojunk=False).ratio()
