"""`lerobot-rollout` and `lerobot-eval` with a policy that is ready to act, as `depi eval` has it.

LeRobot loads policies in the same way to act and to train: a mark on the configuration says that only the
former will be.
"""

from typing import Any

from depi.policies.base import ONLY_ACTS
from depi.policies.families import TYPES, family
from lerobot_policy_depi.commands import EVAL, ROLLOUT, after_reading


def mark_policies_that_only_act() -> None:
    """Let the policies of the running command get ready, if it is one that does not train."""
    after_reading(ROLLOUT, _mark_rollout)
    after_reading(EVAL, lambda config: _mark(config.policy, getattr(config.policy, "compile_model", False)))


def _mark_rollout(config: Any) -> None:
    """`use_torch_compile` overwrites the policy's choice later, and lets the command wait for first chunks.

    Their time would else count as the policy's: real-time chunking goes by the longest one for ever.
    """
    if _mark(config.policy, config.use_torch_compile):
        config.policy.device = config.device  # where the command moves it after loading
        if str(config.device).startswith("cuda"):
            config.use_torch_compile = True


def _mark(policy: Any, compiling: bool) -> bool:
    """Whether it is one of DePi's own that acts."""
    known = policy.type in TYPES and family(policy.type).own and policy.type not in family(policy.type).stock
    if known and family(policy.type).acts:
        setattr(policy, ONLY_ACTS, compiling)
        return True
    return False
