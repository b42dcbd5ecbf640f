"""Exact floating-point operations of LeRobot's pi0 and pi0.5, counted as in `depi.models.flops`."""

from depi.models.flops import (
    Flops,
    SampleFlops,
    attention_flops,
    keys_values,
    mlp_flops,
    product,
    rest_of_layer,
    suffix_ends,
    vision_ends,
    vision_layer,
)
from depi.models.flow import FlowDimensions


def lerobot_flops(d: FlowDimensions, camera_slots: int, padded_tokens: int) -> SampleFlops:
    """Operations of one sample in LeRobot 0.6.1, which computes every camera slot and padded token.

    Prefix and suffix share one attention over all tokens, and the last prefix layer is computed in full:
    its output projection and MLP only forwards, since the loss does not depend on them.

    Args:
        d: the network's sizes.
        camera_slots: cameras of the policy, present or not.
        padded_tokens: length to which prompts are padded.
    """
    patches = camera_slots * d.patches
    p, s = patches + padded_tokens, d.suffix.tokens
    vision = vision_layer(d, camera_slots) * d.vision_depth
    inner = d.num_heads * d.head_dim
    own = keys_values(d, p, d.width) + product(p, d.width, inner) + attention_flops(p, p + s, inner)
    tail = product(p, inner, d.width) + mlp_flops(p, d.width, d.mlp_dim)
    rotary = Flops(2 * (d.head_dim // 2) * (p + s))  # angles of positions, once per layer
    expert = keys_values(d, s, d.expert_width) + rest_of_layer(
        d, s, d.expert_width, d.expert_mlp_dim, keys=p + s
    )
    prefix = own * d.depth + tail * (d.depth - 1) + Flops(tail.forward) + rotary * d.depth
    return SampleFlops(
        vision=vision_ends(d, patches) + vision,
        prefix=prefix,
        suffix=expert * d.depth + suffix_ends(d),
        recomputable=(vision + prefix + expert * d.depth).forward,
    )
