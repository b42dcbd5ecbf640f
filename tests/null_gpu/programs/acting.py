"""How policies get ready to act on a GPU: as `depi eval` loads them, and as `lerobot-rollout` does.

python acting.py KNOWN ... with what is known of the GPU: `nothing`; `right`, where all checks went well;
`wrong`, where some failed; and `compiler`, where nothing is known and the compiler is broken, which needs a
process that has compiled nothing.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lerobot.rollout.configs
import lerobot_policy_depi  # noqa: F401  changes the command's configuration, as LeRobot imports it
import torch
from device import counted_since, counts, report
from faulty_checks import break_compiler
from first_contact import Heard
from lerobot.robots.so_follower import SO101FollowerConfig
from lerobot.rollout.context import _load_pretrained_policy
from lerobot_pi0 import as_from_robot

from depi.models.pi0 import Pi0Dimensions
from depi.policies import Pi0Policy, convert, gpus, load_policy
from depi.policies.choices import choices_of
from depi.policies.factory import ready_to_act
from depi.policies.gpus import GROUPS, Check, Verdict, identity, save
from depi.training.gpu.networks import WORDS, build, random_batch

CUDA = torch.device("cuda", 0)
FAILED = ("attention efficient", "CUDA graph", "compiled chunk")
SIZES = Pi0Dimensions.tiny(depth=2, chunk_size=5, image_size=28, vocab_size=64)


def know(known: str) -> None:
    """Keep a verdict of this GPU."""
    os.environ["DEPI_CACHE"] = tempfile.mkdtemp()
    gpus._say_unchecked.cache_clear()
    if known in ("right", "wrong"):
        failed = FAILED if known == "wrong" else ()
        names = [name for names, _ in GROUPS.values() for name in names]
        checks = [Check(name, "fail" if name in failed else "ok", "off by 1") for name in names]
        save(Verdict(identity(CUDA), tuple(checks)))


def as_evaluated(folder: Path) -> Pi0Policy:
    """As `depi eval` does."""
    return ready_to_act(load_policy(folder, device="cuda"))


def as_rolled_out(folder: Path) -> Pi0Policy:
    """As `lerobot-rollout` does with these flags and no others."""
    sys.argv = ["lerobot-rollout", f"--policy.path={folder}", "--policy.device=cuda"]
    config = lerobot.rollout.configs.RolloutConfig(robot=SO101FollowerConfig(port="/dev/null"))
    config.policy.compile_model = config.use_torch_compile
    policy = _load_pretrained_policy(config.policy).to(config.device).eval()
    assert config.use_torch_compile  # the command waits for the first chunks
    return policy


def act(load: Any, folder: Path) -> dict[str, Any]:
    """What a policy says and does when it is loaded and asked for chunks."""
    heard, logger = Heard(), logging.getLogger("depi")
    logger.setLevel(logging.INFO)
    logger.addHandler(heard)
    policy = load(folder)
    batch = as_from_robot(random_batch(policy, 1, CUDA, packed=False), WORDS)
    for _ in range(2):
        before = counts()
        policy.predict_action_chunk(batch)
        counted = counted_since(before)
    logger.removeHandler(heard)
    choices = choices_of(policy.config)
    return {
        "prepared": policy._inference_only,
        "compiled": "respond" in vars(policy.model),
        "attention_backends": choices.attention_backends,
        "messages": heard.messages,
        **counted,
    }


def main(known: list[str]) -> None:
    """Each of them by both ways."""
    convert.check_finite = lambda path, weights: None  # no kernel computes whether they are
    folder = Path(tempfile.mkdtemp())
    build(SIZES, torch.device("cpu")).save_pretrained(folder)
    findings = {}
    for name in known:
        know(name)
        if name == "compiler":
            break_compiler()
        findings[name] = {load.__name__: act(load, folder) for load in (as_evaluated, as_rolled_out)}
    report(findings)


if __name__ == "__main__":
    main(sys.argv[1:])
