"""A small tokenizer with PaliGemma's special tokens, trained here so that it can be distributed.

The published one is gated, and has more words than a small network. An embedded Hub serves this one under the
same name, so that programs load it by the same code, and small networks have no other: same special ids,
`<bos>` in front, padding with id 0, `\\n` a token of its own.
"""

import itertools
import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from depi.files import write_json, write_text

TOKENIZER_REPO = "google/paligemma-3b-pt-224"
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
# What transformers is told of it.
SETTINGS = {
    **dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL_TOKENS, strict=True)),
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1_000_000,
}
NEWLINE = "\n"
VOCAB_SIZE = 1024

_VERBS = (
    "pick up", "grasp", "lift", "move", "push", "pull", "place", "put", "drop", "stack", "touch", "reach for",
    "open", "close", "turn", "rotate", "slide", "insert", "take", "pour", "wipe", "fold", "sort", "hand over",
)  # fmt: skip
_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "pink", "grey", "wooden")
_OBJECTS = (
    "cube", "block", "ball", "cup", "bottle", "box", "lego brick", "pen", "marker", "tape", "sponge",
    "towel", "plate", "bowl", "spoon", "drawer", "button", "toy", "screwdriver", "can", "banana",
    "apple", "sock", "lid",
)  # fmt: skip
_PLACES = (
    "in the bin", "on the table", "into the box", "on the plate", "to the left", "to the right",
    "onto the tray", "in front of the robot", "behind the cup", "next to the bowl", "into the container",
    "at the target", "with the gripper", "using the robot arm", "and put it back",
    "and place it on the other side",
)  # fmt: skip
_OTHER = (
    "The SO-100 and SO-101 robot arms have six joints: shoulder pan, shoulder lift, elbow flex, wrist flex, "
    "wrist roll and gripper. A camera sees them from the front, the top, the side or the wrist.",
    "Task: do the same thing again, then go home. Advantage: positive. Advantage: negative. 0 1 2 3",
    "Please carefully return every object that you have found to where it was before, one after another.",
)


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer: byte-pair merges over instructions, with bytes for all other characters.

    Ids 0..3 are `<pad>`, `<eos>`, `<bos>` and `<unk>`, 4..259 the bytes, 260 the newline. Every text has an
    encoding without `<unk>` that decodes to the same text. The same vocabulary comes out every time.
    """
    trained = _new_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - 256 - 1,
        special_tokens=[],
        initial_alphabet=[chr(code) for code in range(ord("!"), ord("~") + 1)],
        show_progress=False,
    )
    trained.train_from_iterator(_corpus(), trainer)
    learnt = json.loads(trained.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    reserved = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), NEWLINE]
    vocabulary = {piece: index for index, piece in enumerate([*reserved, *pieces])}
    merges = [(left, right) for left, right in learnt["merges"]]

    tokenizer = _new_tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def _new_tokenizer(model: models.Model) -> Tokenizer:
    """Gemma's settings: spaces become a visible character, merges stay within a word, newlines are tokens."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(NEWLINE, "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _corpus() -> list[str]:
    phrases = [
        f"{verb} the {colour} {thing} {place}"
        for (verb, colour), (thing, place) in zip(
            itertools.product(_VERBS, _COLOURS),
            itertools.cycle(itertools.product(_OBJECTS, _PLACES)),
            strict=False,
        )
    ]
    return [*phrases, *(phrase.capitalize() + "." for phrase in phrases), *_OTHER]


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer as files that `transformers.AutoTokenizer.from_pretrained` loads, with a card."""
    write_text(folder / "tokenizer.json", build_tokenizer().to_str(pretty=True))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **SETTINGS,
            "add_bos_token": True,
            "add_eos_token": False,
        },
    )
    special = {name: token for name, token in SETTINGS.items() if token in SPECIAL_TOKENS}
    write_json(folder / "special_tokens_map.json", special)
    # Offline, transformers only finds a tokenizer whose repository has a model's configuration too.
    write_json(folder / "config.json", {"model_type": "paligemma"})
    write_text(folder / "README.md", _CARD)


_CARD = """---
license: apache-2.0
tags: [tokenizer]
---
A small stand-in tokenizer that DePi made for offline use. It shares the special tokens of the published
PaliGemma tokenizer and none of its vocabulary: checkpoints trained with one do not work with the other.
"""
