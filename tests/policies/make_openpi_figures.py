# /// script
# requires-python = ">=3.12,<3.13"
# dependencies = [
#     "augmax", "beartype==0.19.0", "einops", "equinox", "flax==0.10.2", "jax[cpu]==0.5.3",
#     "jaxtyping==0.2.36", "ml_collections==1.0.0", "numpy<2", "orbax-checkpoint==0.11.13", "safetensors",
#     "torch", "transformers",
# ]
# ///
"""Write `openpi_figures.npz`: what openpi's own JAX code computes, for `test_openpi_figures.py`.

    uv run tests/policies/make_openpi_figures.py CHECKOUT

CHECKOUT is a folder with openpi's repository; the requirements are the versions that it asks for. A pi0 and
a pi0.5 of its classes, in float32 and with small size tables, get parameters from a seed. Of one batch, in
which samples lack cameras and words, the file has the loss, every gradient and the sampled actions.
Parameters and gradients have the names and shapes of openpi's `convert_jax_model_to_pytorch.py`, which DePi
reads. The file in the repository: openpi 15a9616a (16 June 2026), jax 0.5.3, two cores of an AMD EPYC.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

IMAGE, PATCH, VOCABULARY, WORDS, STEPS = 14, 7, 40, 6, 5
VISION = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2}
HEADS = {"depth": 2, "num_heads": 4, "num_kv_heads": 1, "head_dim": 6}
SIZES = {
    "gemma_2b": {"width": 16, "mlp_dim": 20, **HEADS},
    "gemma_300m": {"width": 12, "mlp_dim": 18, **HEADS},
}
# Of three samples: the first has everything.
CAMERAS = {
    "base_0_rgb": [True, True, False],
    "left_wrist_0_rgb": [True, False, True],
    "right_wrist_0_rgb": [True, True, False],
}
PROMPTS = [WORDS, 3, 1]
# Parameters are multiples of this, so that a byte holds one.
GRAIN = 1 / 128

PALIGEMMA = "paligemma_with_expert.paligemma.model."
TOWER = PALIGEMMA + "vision_tower.vision_model."
GEMMA = {"": PALIGEMMA + "language_model.", "_1": "paligemma_with_expert.gemma_expert.model."}

type Arrays = dict[str, np.ndarray]
type Change = Callable[[np.ndarray], np.ndarray]


def same(w: np.ndarray) -> np.ndarray:
    return w


def flat(w: np.ndarray) -> np.ndarray:
    return w.reshape(-1)


def transposed(w: np.ndarray) -> np.ndarray:
    """[in, out] -> [out, in]."""
    return w.T


def into_heads(w: np.ndarray) -> np.ndarray:
    """[in, heads, size] -> [heads * size, in]."""
    return w.reshape(len(w), -1).T


def by_head(w: np.ndarray) -> np.ndarray:
    """[heads, in, size] -> [heads * size, in]."""
    return w.transpose(0, 2, 1).reshape(-1, w.shape[1])


def out_of_heads(w: np.ndarray) -> np.ndarray:
    """[heads, size, out] -> [out, heads * size]."""
    return w.reshape(-1, w.shape[-1]).T


def vision_names() -> list[tuple[str, str, Change]]:
    block, layer = "img/Transformer/encoderblock/", TOWER + "encoder.layers.#."
    attention = block + "MultiHeadDotProductAttention_0/"
    names: list[tuple[str, str, Change]] = [
        (
            "img/embedding/kernel",
            TOWER + "embeddings.patch_embedding.weight",
            lambda w: w.transpose(3, 2, 0, 1),
        ),
        ("img/embedding/bias", TOWER + "embeddings.patch_embedding.bias", same),
        ("img/pos_embedding", TOWER + "embeddings.position_embedding.weight", lambda w: w[0]),
        ("img/Transformer/encoder_norm/scale", TOWER + "post_layernorm.weight", same),
        ("img/Transformer/encoder_norm/bias", TOWER + "post_layernorm.bias", same),
        ("img/head/kernel", PALIGEMMA + "multi_modal_projector.linear.weight", transposed),
        ("img/head/bias", PALIGEMMA + "multi_modal_projector.linear.bias", same),
        (attention + "out/kernel", layer + "self_attn.out_proj.weight", out_of_heads),
        (attention + "out/bias", layer + "self_attn.out_proj.bias", same),
    ]
    for theirs, torchs in (("query", "q"), ("key", "k"), ("value", "v")):
        names.append((f"{attention}{theirs}/kernel", f"{layer}self_attn.{torchs}_proj.weight", into_heads))
        names.append((f"{attention}{theirs}/bias", f"{layer}self_attn.{torchs}_proj.bias", flat))
    for number in (0, 1):
        norm, dense = f"{block}LayerNorm_{number}/", f"{block}MlpBlock_0/Dense_{number}/"
        names.append((norm + "scale", f"{layer}layer_norm{number + 1}.weight", same))
        names.append((norm + "bias", f"{layer}layer_norm{number + 1}.bias", same))
        names.append((dense + "kernel", f"{layer}mlp.fc{number + 1}.weight", transposed))
        names.append((dense + "bias", f"{layer}mlp.fc{number + 1}.bias", same))
    return names


def gemma_names(expert: str) -> list[tuple[str, str, Change]]:
    """Of PaliGemma's language model ("") or of the action expert ("_1")."""
    llm, layer = "llm/layers/", GEMMA[expert] + "layers.#."
    attention, mlp = llm + "attn/", llm + f"mlp{expert}/"
    names: list[tuple[str, str, Change]] = [
        (f"{attention}q_einsum{expert}/w", layer + "self_attn.q_proj.weight", by_head),
        (f"{attention}kv_einsum{expert}/w", layer + "self_attn.k_proj.weight", lambda w: by_head(w[0])),
        (f"{attention}kv_einsum{expert}/w", layer + "self_attn.v_proj.weight", lambda w: by_head(w[1])),
        (f"{attention}attn_vec_einsum{expert}/w", layer + "self_attn.o_proj.weight", out_of_heads),
        (mlp + "gating_einsum", layer + "mlp.gate_proj.weight", lambda w: w[0].T),
        (mlp + "gating_einsum", layer + "mlp.up_proj.weight", lambda w: w[1].T),
        (mlp + "linear", layer + "mlp.down_proj.weight", transposed),
    ]
    for theirs, torchs in (
        (f"{llm}pre_attention_norm{expert}/", layer + "input_layernorm."),
        (f"{llm}pre_ffw_norm{expert}/", layer + "post_attention_layernorm."),
        (f"llm/final_norm{expert}/", GEMMA[expert] + "norm."),
    ):
        names.append((theirs + "scale", torchs + "weight", same))
        names.append((theirs + "Dense_0/kernel", torchs + "dense.weight", transposed))
        names.append((theirs + "Dense_0/bias", torchs + "dense.bias", same))
    return names


NAMES = [
    *vision_names(),
    ("llm/embedder/input_embedding", GEMMA[""] + "embed_tokens.weight", same),
    *gemma_names(""),
    *gemma_names("_1"),
]


def to_pytorch(arrays: Arrays) -> Arrays:
    """Parameters or gradients by openpi's JAX names -> by those of its PyTorch layout."""
    arrays = {name.removeprefix("PaliGemma/"): value for name, value in arrays.items()}
    changed: Arrays = {}
    used = set()
    for theirs, torchs, change in NAMES:
        if theirs not in arrays:
            continue  # the two families have different norms
        used.add(theirs)
        if "#" in torchs:
            for number, value in enumerate(arrays[theirs]):
                changed[torchs.replace("#", str(number))] = change(value)
        else:
            changed[torchs] = change(arrays[theirs])
    for name in arrays.keys() - used:
        layer, kind = name.split("/")  # the linear layers around the expert
        value = arrays[name]
        changed[f"{layer}.{'weight' if kind == 'kernel' else 'bias'}"] = (
            value.T if kind == "kernel" else value
        )
    return changed


def flattened(arrays: Arrays, dtype: type) -> Arrays:
    """All arrays in one, and a JSON object of their names, in order, and shapes, for a small file."""
    names = json.dumps({name: arrays[name].shape for name in sorted(arrays)})
    return {
        "names": np.array(names),
        "values": np.concatenate([arrays[name].reshape(-1).astype(dtype) for name in sorted(arrays)]),
    }


def make_small(pi05: bool):
    """openpi's model with the size tables of this file; its parameters are drawn from a seed."""
    from openpi.models import gemma, model, pi0_config, siglip

    gemma.PALIGEMMA_VOCAB_SIZE = VOCABULARY
    gemma.get_config = lambda variant: gemma.Config(**SIZES[variant])
    siglip.decode_variant = lambda variant: {**VISION, "patch_size": (PATCH, PATCH)}
    model.IMAGE_RESOLUTION = (IMAGE, IMAGE)
    if not isinstance(model.preprocess_observation, functools.partial):
        model.preprocess_observation = functools.partial(
            model.preprocess_observation, image_resolution=(IMAGE, IMAGE)
        )
    config = pi0_config.Pi0Config(dtype="float32", action_horizon=STEPS, max_token_len=WORDS, pi05=pi05)
    shapes = nnx.state(nnx.eval_shape(config.create, jax.random.key(0))).to_pure_dict()
    draw = np.random.default_rng(1)
    parameters = {}
    for name, shape in sorted(traverse_util.flatten_dict(shapes, sep="/").items()):
        multiples = np.round(draw.normal(0, 0.2 / GRAIN, shape.shape))
        parameters[name] = np.clip(multiples, -127, 127).astype(np.float32) * GRAIN
    return config.load(traverse_util.unflatten_dict(parameters, sep="/")), parameters


def make_inputs() -> Arrays:
    draw = np.random.default_rng(2)
    size = len(PROMPTS)
    return {
        **{name: draw.integers(0, 256, (size, IMAGE, IMAGE, 3), dtype=np.uint8) for name in CAMERAS},
        **{f"{name}_mask": np.array(mask) for name, mask in CAMERAS.items()},
        "state": draw.normal(size=(size, 32)).astype(np.float32),
        "tokens": draw.integers(1, VOCABULARY, (size, WORDS)).astype(np.int32),
        "token_mask": np.arange(WORDS) < np.array(PROMPTS)[:, None],
        "actions": draw.normal(size=(size, STEPS, 32)).astype(np.float32),
        "noise_to_sample_from": draw.normal(size=(size, STEPS, 32)).astype(np.float32),
    }


def compute(pi05: bool, inputs: Arrays) -> Arrays:
    """openpi's figures for these inputs."""
    from openpi.models.model import Observation

    model, parameters = make_small(pi05)
    observation = Observation.from_dict(
        {
            "image": {name: inputs[name] for name in CAMERAS},
            "image_mask": {name: jnp.asarray(inputs[f"{name}_mask"]) for name in CAMERAS},
            "state": jnp.asarray(inputs["state"]),
            "tokenized_prompt": jnp.asarray(inputs["tokens"]),
            "tokenized_prompt_mask": jnp.asarray(inputs["token_mask"]),
        }
    )
    observation = jax.tree.map(jnp.asarray, observation)
    actions, key = jnp.asarray(inputs["actions"]), jax.random.key(3)

    def loss(model: nnx.Module) -> tuple[jax.Array, jax.Array]:
        each = model.compute_loss(key, observation, actions)  # [B, H]
        return each.mean(), each

    (_, each), gradients = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model)
    gradients = traverse_util.flatten_dict(gradients.to_pure_dict(), sep="/")
    # As `compute_loss` draws them.
    _, noise_key, time_key = jax.random.split(key, 3)
    sampled = nnx.jit(type(model).sample_actions)(
        model, key, observation, noise=jnp.asarray(inputs["noise_to_sample_from"])
    )
    steps = {name: np.round(value / GRAIN) for name, value in to_pytorch(parameters).items()}
    return {
        "noise": np.asarray(jax.random.normal(noise_key, actions.shape)),
        "time": np.asarray(jax.random.beta(time_key, 1.5, 1, actions.shape[:-2]) * 0.999 + 0.001),
        "loss": np.asarray(each),
        "sampled": np.asarray(sampled),
        **{f"parameters/{part}": value for part, value in flattened(steps, np.int8).items()},
        **{
            f"gradients/{part}": value
            for part, value in flattened(
                to_pytorch({name: np.asarray(value) for name, value in gradients.items()}), np.float32
            ).items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout
    sys.path[:0] = [str(checkout / "src"), str(checkout / "packages/openpi-client/src")]
    inputs = make_inputs()
    figures = {f"inputs/{name}": value for name, value in inputs.items()}
    for family, pi05 in (("pi0", False), ("pi05", True)):
        figures |= {f"{family}/{name}": value for name, value in compute(pi05, inputs).items()}
    path = Path(__file__).with_name("openpi_figures.npz")
    np.savez_compressed(path, **figures)
    print(f"{path}: {path.stat().st_size} bytes, jax {jax.__version__}")


if __name__ == "__main__":
    main()
