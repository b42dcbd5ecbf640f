"""The small tokenizer: PaliGemma's special tokens, every text, the same every time, as LeRobot loads it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from depi.hub.server.serve import LocalHub
from depi.hub.server.tokenizer import TOKENIZER_REPO, build_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def test_special_tokens_and_size(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "<eos>", "<bos>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() <= 1024
    ids = tokenizer.encode("pick up the red cube\n").ids
    assert ids[0] == 2
    assert ids[-1] == tokenizer.token_to_id("\n")
    assert len(ids) <= 8, "instructions are made of words, not letters"
    words = tokenizer.encode("pick up\nthe cube\n\n").tokens
    assert words.count("\n") == 3


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(blacklist_characters="▁", blacklist_categories=["Cs"])))
def test_every_text_survives(tokenizer: Tokenizer, text: str) -> None:
    if any(token in text for token in ("<pad>", "<eos>", "<bos>", "<unk>")):
        return
    ids = tokenizer.encode(text).ids
    assert ids.count(2) == 1
    assert 3 not in ids
    assert tokenizer.decode(ids) == text


def test_same_files_in_every_process(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "here")
    program = (
        "import sys; from pathlib import Path; from depi.hub.server.tokenizer import write_tokenizer\n"
        "write_tokenizer(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "there"], check=True, timeout=60)
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


PROGRAM = f"""
import json
from transformers import AutoTokenizer
from lerobot.processor import TokenizerProcessorStep
from lerobot.processor.converters import create_transition
tokenizer = AutoTokenizer.from_pretrained({TOKENIZER_REPO!r})
step = TokenizerProcessorStep(
    tokenizer_name={TOKENIZER_REPO!r}, max_length=48, padding_side="right", padding="max_length"
)
tasks = ["pick up the red cube\\n", "Größe 漢字\\n", "word " * 100]
out = step(create_transition(observation={{}}, complementary_data={{"task": tasks}}))["observation"]
print(json.dumps({{
    "fast": tokenizer.is_fast,
    "special": [getattr(tokenizer, f"{{name}}_token_id") for name in ("pad", "eos", "bos", "unk")],
    "ids": out["observation.language.tokens"].tolist(),
    "mask": out["observation.language.attention_mask"].tolist(),
    "text": tokenizer.batch_decode(out["observation.language.tokens"], skip_special_tokens=True),
}}))
"""


def test_lerobot_loads_it_from_the_hub(hub: LocalHub) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["fast"]
    assert out["special"] == [0, 1, 2, 3]
    for ids, mask in zip(out["ids"], out["mask"], strict=True):
        assert len(ids) == len(mask) == 48
        assert ids[0] == 2
        assert all((token == 0) == (real == 0) for token, real in zip(ids, mask, strict=True))
        assert mask == sorted(mask, reverse=True), "padding is on the right"
    assert out["text"][:2] == ["pick up the red cube\n", "Größe 漢字\n"]
    assert sum(out["mask"][2]) == 48, "long texts are cut"
