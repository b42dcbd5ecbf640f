"""A stranger's repository that would run code, and checkpoints that name it wherever a text can stand."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STRANGER = "stranger/helpful"
# It leaves a file behind when it runs, and its text stands in no other code.
CODE = """
import os, pathlib
pathlib.Path(os.environ["MARK"]).write_text(os.environ.get("HF_TOKEN", ""))
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
class Config(PretrainedConfig):
    model_type = "helpful"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
class Processor(ProcessorMixin):
    pass
"""
CLASSES = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoProcessor": "code.Processor",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}
ACT: dict[str, Any] = {
    "type": "act",
    "input_features": {
        "observation.image": {"type": "VISUAL", "shape": [3, 96, 96]},
        "observation.state": {"type": "STATE", "shape": [2]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
}
TOKENIZE = {
    "registry_name": "tokenizer_processor",
    "config": {"tokenizer_name": STRANGER, "max_length": 8, "task_key": "task", "padding_side": "right"},
}
TO_ACTIONS = {
    "registry_name": "action_tokenizer_processor",
    "config": {"action_tokenizer_name": STRANGER, "trust_remote_code": True},
}
GAUSSIAN = ACT | {"type": "gaussian_actor", "vision_encoder_name": STRANGER}
# What unpickling runs: `open(MARK, "w")` of the environment's MARK, without a module of the stranger.
PICKLE = b"cos\nsystem\n(S'echo ran > \"$MARK\"'\ntR."


def write_repository(folder: Path) -> Path:
    """What `STRANGER` holds: code for every automatic class of transformers, and pickled weights."""
    folder.mkdir(parents=True)
    (folder / "code.py").write_text(CODE)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "adapter_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "helpful", "auto_map": CLASSES}))
    for name in ("pytorch_model.bin", "adapter_model.bin", "norm_stats.pkl", "training_state.pt"):
        (folder / name).write_bytes(PICKLE)
    return folder


def write_checkpoint(folder: Path, config: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Path:
    """A checkpoint with this configuration and these steps before the policy, and no weights worth the name.

    Beside them lies what `write_repository` writes: a folder can be the repository, too.
    """
    write_repository(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"auto_map": CLASSES} | config))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for name, content in (("preprocessor", steps), ("postprocessor", [])):
        path = folder / f"policy_{name}.json"
        path.write_text(json.dumps({"name": f"policy_{name}", "steps": content}))
    return folder


def hostile_fields(cls: type, name: str = STRANGER) -> dict[str, Any]:
    """The stranger's name in every field of a dataclass that takes a text, also in lists and inner ones."""
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a name that is imported for type checkers only
        hints = {field.name: field.type for field in dataclasses.fields(cls)}
    found = {
        field.name: _hostile(hints.get(field.name, ""), name)
        for field in dataclasses.fields(cls)
        if field.init
    }
    return {field: value for field, value in found.items() if value is not None}


def _hostile(kind: Any, name: str) -> Any:
    """A value of a type with the name in it; None where there is no place for it."""
    text = str(kind)
    if kind is str or (isinstance(kind, str) and "str" in kind and "[" not in kind):
        return name
    if kind is Path or text.startswith("Path"):
        return name
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return hostile_fields(kind, name) or None
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (list, tuple) and str in inner:
        return [name]
    if origin is dict and inner == (str, str):
        return {name: name}
    if origin in (list, tuple, dict) or not inner:
        return None
    return next((value for each in inner if (value := _hostile(each, name)) is not None), None)
