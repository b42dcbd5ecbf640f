"""What smolvla and multi_task_dit begin with, tiny and random, under the names that they have on the Hub."""

from pathlib import Path

import torch
from tiny_vlm import byte_tokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from depi.hub.client.api import upload_folder

SMOLVLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
CLIP = "openai/clip-vit-base-patch16"


def publish_smolvlm(folder: Path) -> None:
    """With the processor of the model that it comes from: SmolVLM's needs one package more."""
    named = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    tokenizer = byte_tokenizer(
        eos_token="<|im_end|>", pad_token="<|endoftext|>", model_specific_special_tokens=named
    )
    tokenizer.add_tokens(["<image>", "<end_of_utterance>"])
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2}
    config = SmolVLMConfig(
        text_config={
            **layers,
            "model_type": "llama",
            "num_key_value_heads": 1,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    Idefics3Processor(Idefics3ImageProcessor(), tokenizer, image_seq_len=4).save_pretrained(folder)
    upload_folder(folder, SMOLVLM, repo_type="model", commit_message="Upload")


def publish_clip(folder: Path) -> None:
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<|padding|>")
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config={**layers, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    upload_folder(folder, CLIP, repo_type="model", commit_message="Upload")
