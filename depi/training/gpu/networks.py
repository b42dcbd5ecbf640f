"""Networks on a GPU: compiled against eager, replayed against plain, memory against the estimate, times."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor
from torch._dynamo.utils import counters

from depi.models.flops import sample_flops
from depi.models.pi0 import Pi0Dimensions
from depi.policies.batches import pack_batch
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.factory import make_policy
from depi.policies.gpus import Check
from depi.policies.pi0 import Pi0Policy
from depi.training.estimate import estimate_memory, model_to_train
from depi.training.gpu.checking import (
    Figures,
    NotHereError,
    WrongError,
    checks_of,
    judge,
    milliseconds,
    relative_error,
    wait_for,
)
from depi.training.optimizer import clipped_step, make_optimizer

JOINTS = 6
CAMERAS = ("observation.images.0", "observation.images.1", "observation.images.2")
WORDS = 16
PADDED = 48
# Depths of the language model and of the vision tower: pi0's, then what smaller GPUs have room for.
DEPTHS = ((18, 27), (9, 14), (4, 7), (2, 3))
WARMUP, STEPS, CHUNKS = 2, 10, 10
# More than the estimate is said to be off by.
LARGEST_EXCESS = 0.05
# Of a gradient in bfloat16 whose operations are fused otherwise.
LARGEST_GRADIENT_ERROR = 0.05


@dataclass
class Data:
    """An SO-101's data with three cameras, as far as a policy needs to know it."""

    state_dim: int = JOINTS
    action_dim: int = JOINTS
    camera_slots: tuple[str, ...] = CAMERAS


def shallow() -> Pi0Dimensions:
    """Two layers of each kind of pi0, and fewer words: 1 GB."""
    return Pi0Dimensions.full(depth=2, vision_depth=2, vocab_size=8192)


def configuration(d: Pi0Dimensions, **choices: Any) -> DepiPi0Config:
    """Of a policy of such sizes that computes in bfloat16."""
    names = [name for name in vars(d) if hasattr(DepiPi0Config, name)]
    sizes = {name: getattr(d, name) for name in names}
    return DepiPi0Config(
        device="cpu",
        **{**sizes, "image_resolution": (d.image_size, d.image_size), "n_action_steps": d.chunk_size},
        max_state_dim=d.state_dim,
        max_action_dim=d.action_dim,
        tokenizer_max_length=PADDED,
        dtype="bfloat16",
        optimizer_lr=2.5e-5,
        **choices,
    )


def build(d: Pi0Dimensions, device: torch.device, **choices: Any) -> Pi0Policy:
    """A policy with random weights, always the same on one device."""
    torch.manual_seed(0)
    policy = make_policy(configuration(d, **choices), Data(), device=str(device))
    assert isinstance(policy, Pi0Policy)
    return policy.train()


def sizes_of(policy: Pi0Policy) -> Pi0Dimensions:
    """Those of its network."""
    d = policy.model.dimensions
    assert isinstance(d, Pi0Dimensions)
    return d


def random_batch(
    policy: Pi0Policy, size: int, device: torch.device, *, packed: bool = True
) -> dict[str, Any]:
    """A processed batch, the first samples with all cameras, the last with fewer; with noise and times."""
    d, generator = sizes_of(policy), torch.Generator().manual_seed(0)
    image = (size, 3, d.image_size, d.image_size)
    batch: dict[str, Any] = {
        OBS_STATE: torch.randn(size, JOINTS, generator=generator),
        ACTION: torch.randn(size, d.chunk_size, JOINTS, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(1, d.vocab_size, (size, PADDED), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: (torch.arange(PADDED) < WORDS).repeat(size, 1),
        "noise": torch.randn(size, d.chunk_size, policy.config.max_action_dim, generator=generator),
        "time": torch.rand(size, generator=generator),
    }
    for slot, key in enumerate(CAMERAS):
        batch[key] = torch.randint(0, 256, image, dtype=torch.uint8, generator=generator)
        batch[f"{key}_is_pad"] = torch.arange(size) >= size - (slot if packed else 0)
    if packed:
        batch = pack_batch(policy.config, batch)
    return send_to_device(batch, device)


def check_compile(
    device: torch.device, d: Pi0Dimensions | None = None, wanted: Collection[str] | None = None
) -> Iterator[Check]:
    """Compiled layers against eager ones."""
    return checks_of({"compile": lambda: measure_compile(device, d or shallow())}, wanted)


def measure_compile(device: torch.device, d: Pi0Dimensions) -> tuple[str, Figures]:
    """Loss and gradients of one batch, with how long compilation took and how many graphs it made."""
    policy = build(d, device)
    batch = random_batch(policy, 4, device)
    losses, gradients = [], []
    for compiled in (False, True):
        if compiled:
            policy.model.compile_layers()
        started = time.perf_counter()
        policy.zero_grad()
        with policy.autocast():
            loss, _ = policy(batch)
        loss.backward()
        losses.append(real_loss(loss))
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
        took = time.perf_counter() - started
    expected, found = (torch.cat([g.detach().float().cpu().flatten() for g in each]) for each in gradients)
    errors = {"loss": abs(losses[1] - losses[0]) / losses[0]}
    figures: Figures = {"s first compiled step": took, "graphs": counters["stats"]["unique_graphs"]}
    figures["error, loss"] = errors["loss"]
    figures["error, gradient"] = relative_error(found, expected)
    judge({"gradient": figures["error, gradient"]}, figures, LARGEST_GRADIENT_ERROR)
    return f"{judge(errors, figures)}, compiled in {took:.0f} s", figures


def real_loss(loss: Tensor) -> float:
    """A loss as a number.

    Raises:
        WrongError: no loss of random weights is such a number.
    """
    value = float(loss.detach())
    if not 0.01 < value < 1e4:
        raise WrongError(f"the loss of random weights is {value:g}", {"loss": value})
    return value


def check_graph(
    device: torch.device, d: Pi0Dimensions | None = None, wanted: Collection[str] | None = None
) -> Iterator[Check]:
    """Chunks that a CUDA graph replays, and compiled ones, against plain ones."""
    sizes = d or shallow()
    measures: dict[str, Callable[[], tuple[str, Figures]]] = {
        "CUDA graph": lambda: measure_graph(device, sizes),
        "compiled chunk": lambda: measure_compiled_chunk(device, sizes),
    }
    return checks_of(measures, wanted)


def measure_graph(device: torch.device, d: Pi0Dimensions) -> tuple[str, Figures]:
    """Two chunks from different noise, plain and replayed."""
    if device.type != "cuda":
        raise NotHereError("only CUDA devices have it")
    policy = policy_that_acts(d, device)
    expected = two_chunks(policy)
    policy.config.cuda_graphs = True
    return compare_chunks("replayed", two_chunks(policy), expected)


def measure_compiled_chunk(device: torch.device, d: Pi0Dimensions) -> tuple[str, Figures]:
    """Two chunks from different noise, plain and compiled, with the time of the latter."""
    policy = policy_that_acts(d, device)
    expected = two_chunks(policy)
    policy.model.compile_for_sampling()
    started = time.perf_counter()
    found = two_chunks(policy)
    took = time.perf_counter() - started
    said, figures = compare_chunks("compiled", found, expected)
    return f"{said}, compiled in {took:.0f} s", {**figures, "s compiled chunks": took}


def policy_that_acts(d: Pi0Dimensions, device: torch.device) -> Pi0Policy:
    """One that neither compiles nor replays yet."""
    return build(d, device, cuda_graphs=False, compile_chunks=False).for_inference()


def two_chunks(policy: Pi0Policy) -> list[Tensor]:
    """Chunks of the same observation from different noise."""
    batch = random_batch(policy, 1, next(policy.parameters()).device, packed=False)
    noise = batch.pop("noise")
    return [policy.predict_action_chunk(batch, start).cpu() for start in (noise, noise.flip(1))]


def compare_chunks(kind: str, found: list[Tensor], expected: list[Tensor]) -> tuple[str, Figures]:
    """Two chunks against plain ones."""
    if not all(chunk.abs().sum() > 0 for chunk in expected):
        raise WrongError("a plain chunk is all zero", {})
    errors = {
        f"{name} {kind} chunk": relative_error(*pair)
        for name, *pair in zip(("first", "second"), found, expected, strict=True)
    }
    figures: Figures = {f"error, {name}": error for name, error in errors.items()}
    return judge(errors, figures), figures


def check_whole(
    device: torch.device,
    d: Pi0Dimensions | None = None,
    batch_size: int = 8,
    wanted: Collection[str] | None = None,
) -> Iterator[Check]:
    """Training steps of pi0, or of as many layers as fit, their memory, and a chunk; none is compiled."""
    built: list[Pi0Policy] = []
    measures: dict[str, Callable[[], tuple[str, Figures]]] = {
        "training steps": lambda: measure_steps(device, d, batch_size, built),
        "memory": lambda: measure_memory(device, trained(built), batch_size),
        "chunk": lambda: measure_chunk(device, trained(built)),
    }
    return checks_of(measures, wanted)


def trained(built: list[Pi0Policy]) -> Pi0Policy:
    """The policy of the steps before.

    Raises:
        NotHereError: there were none.
    """
    if not built:
        raise NotHereError("no network was trained")
    return built[0]


def measure_steps(
    device: torch.device, d: Pi0Dimensions | None, batch_size: int, built: list[Pi0Policy]
) -> tuple[str, Figures]:
    """Ten steps of the trainer's parts; the policy is left in `built`."""
    sizes = d or sizes_that_fit(device, batch_size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    policy = build(sizes, device)
    optimizer = make_optimizer(policy)
    batch = random_batch(policy, batch_size, device)
    batch = {key: value for key, value in batch.items() if key not in ("noise", "time")}
    losses = []
    for number in range(WARMUP + STEPS):
        if number == WARMUP:
            wait_for(device)
            started = time.perf_counter()
        with policy.autocast():
            loss, _ = policy(batch)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])
        clipped_step(optimizer, norm, 1.0, (~norm.isfinite()).float())
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    wait_for(device)
    seconds = (time.perf_counter() - started) / STEPS
    built.append(policy)
    packed = batch["packing"]
    operations = batch_size * sample_flops(sizes, 3, WORDS).training() * len(packed.image) // (3 * batch_size)
    figures: Figures = {
        **{"layers of the language model": sizes.depth, "layers of the vision tower": sizes.vision_depth},
        **{"samples a step": batch_size, "images a step": len(packed.image)},
        **{"ms a step": 1000 * seconds, "TFLOP/s": operations / seconds / 1e12},
        **{"loss, first": float(losses[0]), "loss, last": float(losses[-1])},
    }
    for value in losses:
        real_loss(value)
    return f"{1000 * seconds:.0f} ms for {batch_size} samples, {figures['TFLOP/s']:.3g} TFLOP/s", figures


def sizes_that_fit(device: torch.device, batch_size: int) -> Pi0Dimensions:
    """pi0's sizes with as many layers as a GPU has free memory for.

    Raises:
        NotHereError: two layers are too many; or it is no GPU.
    """
    if device.type != "cuda":
        raise NotHereError("pi0 does not train on a processor")
    free = torch.cuda.mem_get_info(device)[0]
    for depth, vision_depth in DEPTHS:
        d = Pi0Dimensions.full(depth=depth, vision_depth=vision_depth)
        if estimated(d, batch_size)["total"] < free:
            return d
    raise NotHereError(f"{free / 1e9:.0f} GB are free, too little for two layers of pi0")


def estimated(d: Pi0Dimensions, batch_size: int) -> Mapping[str, int]:
    """Bytes of a training step as `depi estimate` says: in all, and without its reserve for the device."""
    model = model_to_train(configuration(d), None)
    # The cameras that the last samples lack; see `random_batch`.
    images = 3 - sum(range(len(CAMERAS))) / batch_size
    estimate = estimate_memory(model, batch_size=batch_size, images=images, words=WORDS)
    return {"total": estimate.total, "allocated": estimate.total - estimate.reserve}


def measure_memory(device: torch.device, policy: Pi0Policy, batch_size: int) -> tuple[str, Figures]:
    """The peak of the steps taken so far against the estimate."""
    if device.type != "cuda":
        raise NotHereError("only CUDA's allocator counts")
    peak = torch.cuda.max_memory_allocated(device)
    expected = estimated(sizes_of(policy), batch_size)["allocated"]
    figures = {"GB allocated at the peak": peak / 1e9, "GB estimated": expected / 1e9}
    said = f"{peak / 1e9:.1f} GB at the peak, {expected / 1e9:.1f} estimated"
    if peak > (1 + LARGEST_EXCESS) * expected:
        raise WrongError(said, figures)
    return said, figures


def measure_chunk(device: torch.device, policy: Pi0Policy) -> tuple[str, Figures]:
    """How long a chunk takes with three cameras, replayed where that is possible; not compiled."""
    policy.zero_grad(set_to_none=True)
    policy.config.compile_chunks = False
    policy.for_inference()
    batch = random_batch(policy, 1, device, packed=False)
    took = milliseconds(lambda: policy.predict_action_chunk(batch), device, CHUNKS)
    return f"{took:.1f} ms, host and device", {"ms a chunk": took}
