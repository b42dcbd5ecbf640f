"""Sampling: read the scene once, then follow the velocity from noise to actions.

What the Euler steps share is computed before the first of them, and nothing in between synchronises with
the device: the whole can be captured as one CUDA graph (`capture`). Weights may be those of training, or
those that `inference` makes of them.

Classifier-free guidance with strength beta follows u + beta (c - u), where c is the velocity under the prompt
with a condition and u that without it (Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, equation 6,
whose w is beta - 1; for given actions and time a velocity is linear in the score that is guided there). With
beta = 1 that is c alone, and u is not computed.

Several chunks of one observation (`noise` of N times as many rows) read the scene once: the keys and values
of the prefix are repeated.

What is left of the chunk before can pull a chunk towards itself (Black, Galliker and Levine, Real-Time
Execution of Action Chunking Flow Policies, 2025, equations 2 to 4, whose time runs the other way). As LeRobot
computes it the velocity counts as a constant there: with x_1 = x_t - t v the actions that an Euler step
foresees, the correction, whose Jacobian of x_1 is then the identity, is the weighted error itself.

An action of a robot has D numbers, and the network has room for A. In training the rest is zeros, so that
noisy actions are t * noise there and the true velocity is the noise. The loss leaves the rest out, as
LeRobot's does: what the network says of it is not learned. Followed, it leads to inputs that training never
had, and the robot's numbers suffer; those of a tiny pi0.5 had five times the squared error
(`benchmarks/README.md`, "Numbers that no action has"). The true velocity is known, and is taken.

Letters in shapes as in `flow`; D numbers of a robot's action, K = P + S keys, Z Euler steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from depi.models.attention import attention_bias
from depi.models.flow import FlowNetwork, Prefix
from depi.models.gemma import KeysValues, Rotation, rotary_table
from depi.models.inference import FusedLayer, with_room
from depi.models.packing import any_length, pad, to_rows
from depi.models.scene import Observation

PROMPT_BUCKET = 16  # prompts are cut to a multiple of this, so that few shapes occur


class Given(NamedTuple):
    """The first actions of a chunk that are known when it is sampled, as a network knows them from training.

    See `depi.models.flow.prefix_times`.
    """

    actions: Tensor  # float32 [B, H, A]
    steps: Tensor  # bool [H], True for those that are known


class Pull(NamedTuple):
    """Actions towards which a chunk is pulled at every Euler step, softly; see the module."""

    actions: Tensor  # float32 [B or 1, H, A], what is left of the chunk before, then zeros
    weights: Tensor  # float32 [H], how much each of them counts, 0..1
    limit: float  # of the strength, which would be infinite at the noise


class Scene(NamedTuple):
    """The values that all Euler steps share."""

    keys_values: list[KeysValues] | list[Tensor]  # of the prefix, per layer; of fused layers `with_room`
    rotation: Rotation  # of the suffix
    bias: Tensor  # `attention_bias` of the suffix, [B, 1, S * Q / G, K]
    state: Tensor  # embedded, float32 [B, S - H, E]
    moments: Tensor  # embedded time of each step, [Z, 1, ...]; with given actions [Z, H, ...]
    given: Given | None = None
    guidance: float = 1.0  # beta; other than 1: there are 2 B rows, with the condition and then without it
    behind: Tensor | None = None  # true velocity behind the robot's numbers, [N B, H, A - D]; see the module

    def time(self, step: int) -> float:
        """The flow's time at an Euler step, from 1 down to 1 / Z."""
        return 1.0 - step / len(self.moments)


def trim(observation: Observation, longest: int | None = None, all_cameras: bool = False) -> Observation:
    """Leave out cameras that no sample has, and words beyond the longest prompt, in steps of 16.

    A packed observation is left as it is.

    Args:
        observation: the samples.
        longest: tokens of the longest prompt.
        all_cameras: whether every sample has every camera. Unless both are known they are read back from the
            device.
    """
    images, image_mask, tokens, token_mask, state, packing = observation
    if packing is not None:
        return observation
    if longest is None or not all_cameras:
        places = torch.arange(1, 1 + tokens.shape[1], device=tokens.device)
        longest, *present = torch.cat(((token_mask * places).amax()[None], image_mask.any(dim=0))).tolist()
        slots = [slot for slot, there in enumerate(present) if there] or [0]
        if len(slots) < len(present):
            images, image_mask = images[:, slots], image_mask[:, slots]
    words = PROMPT_BUCKET * max(1, -(-longest // PROMPT_BUCKET))
    return Observation(images, image_mask, tokens[:, :words], token_mask[:, :words], state)


@torch.no_grad()
def sample_actions(
    model: FlowNetwork,
    observation: Observation,
    noise: Tensor,
    num_steps: int = 10,
    guidance: float = 1.0,
    given: Given | None = None,
    pull: Pull | None = None,
    action_dim: int | None = None,
) -> Tensor:
    """Turn noise [N B, H, A] into normalised actions, float32 [N B, H, A], by Euler steps from t = 1 to 0.

    Args:
        model: the network.
        observation: of B samples. With guidance its `tokens` and `token_mask` are [2 B, L]: the prompts with
            the condition, then those without; and it has no packing.
        noise: standard normal; N chunks of each sample: all samples, then all once more.
        num_steps: Euler steps.
        guidance: beta; see the module.
        given: actions that stay as they are.
        pull: actions that draw nearer.
        action_dim: D; A when absent. Behind it actions are zero.
    """
    scene = read_scene(model, observation, noise, num_steps, guidance, given, action_dim)
    x_t = first_point(noise, given)
    for step in range(num_steps):
        v_t = velocity(model, scene, x_t, step)
        if pull is not None:
            v_t = pulled(v_t, x_t, scene.time(step), pull)
        x_t = torch.sub(x_t, v_t, alpha=1 / num_steps)
    return x_t


@torch.no_grad()
def read_scene(
    model: FlowNetwork,
    observation: Observation,
    noise: Tensor,
    num_steps: int,
    guidance: float = 1.0,
    given: Given | None = None,
    action_dim: int | None = None,
) -> Scene:
    """Everything that an Euler step needs beside the noisy actions; see `sample_actions`."""
    images, image_mask, tokens, token_mask, state, packing = observation
    chunks = len(noise) // len(images)
    d, heads_per_group = model.dimensions, model.dimensions.heads_per_group
    prompts = len(tokens) // len(images)
    packing = packing or pad(image_mask.repeat(prompts, 1), token_mask, d.patches)
    filled = packing.rows.filled
    # Little is padded here: tokens go through the layers in rows, and need no copying for attention.
    x = to_rows(model.embed_prefix(images, tokens, packing, prompts), packing.rows)
    rotation = rotary_table(filled.cumsum(dim=1) - 1, d.head_dim)
    bias = attention_bias(filled[:, None], heads_per_group, x.dtype)
    for tensor in (x, *rotation):
        any_length(tensor, 1)
    keys_values = model.prefix(x, rotation, None, any_length(bias, 3))
    if chunks > 1:
        keys_values = [tuple(_repeat(each, prompts, chunks) for each in pair) for pair in keys_values]
        filled = _repeat(filled, prompts, chunks)
    for tensor in (tensor for pair in keys_values for tensor in pair):
        any_length(tensor, 1)

    rotation, bias = model.suffix_view(Prefix(keys_values, filled), d.chunk_size)
    if isinstance(model.suffix.layers[0], FusedLayer):
        keys_values = with_room(keys_values, d.suffix.tokens)
    time = 1.0 - torch.arange(num_steps, device=x.device, dtype=torch.float32) / num_steps
    if given is not None:
        time = time[:, None].expand(-1, d.chunk_size).masked_fill(given.steps, 0.0)
    embedded = model.embed_state(state).repeat(prompts * chunks, 1, 1)
    behind = None if action_dim is None else noise[..., action_dim:]
    return Scene(keys_values, rotation, bias, embedded, model.embed_time(time), given, guidance, behind)


def _repeat(rows: Tensor, prompts: int, chunks: int) -> Tensor:
    """Rows of all samples with their first prompts, then with the second: those of each prompt N times."""
    each = rows.unflatten(0, (prompts, 1, -1))
    return each.expand(-1, chunks, *each.shape[2:]).flatten(0, 2)


def first_point(noise: Tensor, given: Given | None) -> Tensor:
    """Where sampling begins, [B, H, A]: at the noise, and at given actions, which `velocity` never moves."""
    return noise if given is None else torch.where(given.steps[:, None], given.actions, noise)


def velocity(model: FlowNetwork, scene: Scene, x_t: Tensor, step: int) -> Tensor:
    """What `FlowNetwork.velocity` predicts, float32 [B, H, A], at x_t [B, H, A] and an Euler step's time.

    With guidance, what it predicts for both prompts, combined. Behind the robot's numbers the true velocity;
    zero where actions are given.
    """
    rows = x_t if scene.guidance == 1.0 else x_t.repeat(2, 1, 1)
    moment = scene.moments[step]
    predicted = model.respond(rows, scene.state, moment, scene.rotation, scene.bias, scene.keys_values)
    if scene.guidance != 1.0:
        conditional, unconditional = predicted.chunk(2)
        predicted = unconditional + scene.guidance * (conditional - unconditional)
    if scene.behind is not None:
        known = scene.behind.shape[-1]
        predicted = torch.cat((predicted[..., : predicted.shape[-1] - known], scene.behind), dim=-1)
    if scene.given is not None:
        predicted = predicted.masked_fill(scene.given.steps[:, None], 0.0)
    return predicted


def pulled(v_t: Tensor, x_t: Tensor, time: float, pull: Pull) -> Tensor:
    """Velocity v_t [B, H, A] at x_t [B, H, A] with the correction towards `pull`; see the module.

    The strength is, in the paper's terms, (1 - tau) / (tau r^2) with tau = 1 - t, at most the limit.
    """
    tau = 1.0 - time
    strength = pull.limit if tau == 0.0 else min(pull.limit, (time**2 + tau**2) / (time * tau))
    foreseen = x_t - time * v_t
    return v_t - strength * ((pull.actions - foreseen) * pull.weights[:, None])
