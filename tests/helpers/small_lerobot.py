"""LeRobot's own policies in the smallest sizes that train, as flags."""

SMALL = {
    "act": {
        "pretrained_backbone_weights": "null",
        "chunk_size": 8,
        "n_action_steps": 8,
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 16,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "optimizer_lr": 1e-3,
    },
    "diffusion": {
        "pretrained_backbone_weights": "null",
        "horizon": 8,
        "n_action_steps": 4,
        "drop_n_last_frames": 3,
        "down_dims": "[8,16]",
        "diffusion_step_embed_dim": 8,
        "spatial_softmax_num_keypoints": 4,
        "num_train_timesteps": 10,
        "optimizer_lr": 1e-3,
        "scheduler_warmup_steps": 2,
    },
    "vqbet": {
        "pretrained_backbone_weights": "null",
        "n_obs_steps": 2,
        "n_action_pred_token": 2,
        "action_chunk_size": 3,
        "crop_shape": "[32,32]",
        "use_group_norm": "true",
        "spatial_softmax_num_keypoints": 4,
        "n_vqvae_training_steps": 2,
        "vqvae_n_embed": 4,
        "vqvae_embedding_dim": 8,
        "vqvae_enc_hidden_dim": 8,
        "gpt_block_size": 16,
        "gpt_input_dim": 16,
        "gpt_output_dim": 16,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 16,
        "scheduler_warmup_steps": 1,
    },
    "smolvla": {
        "chunk_size": 8,
        "n_action_steps": 4,
        "resize_imgs_with_padding": "[32,32]",
        "num_vlm_layers": 2,
        "num_steps": 2,
        "tokenizer_max_length": 16,
        "scheduler_warmup_steps": 1,
        "optimizer_lr": 1e-3,
    },
    "multi_task_dit": {
        "horizon": 8,
        "n_action_steps": 4,
        "num_train_timesteps": 4,
        "hidden_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "timestep_embed_dim": 16,
        "image_crop_shape": "[32,32]",
        "optimizer_lr": 1e-3,
    },
}


def small_policy(kind: str, **changes: object) -> list[str]:
    """Flags of the policy; later ones win."""
    return [
        f"--policy.type={kind}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        *(f"--policy.{name}={value}" for name, value in {**SMALL[kind], **changes}.items()),
    ]


def small_run(output_dir: object, **changes: object) -> list[str]:
    """Flags of six steps, saved at every second one."""
    flags = {
        "output_dir": output_dir,
        "steps": 6,
        "batch_size": 4,
        "num_workers": 0,
        "log_freq": 1,
        "save_freq": 2,
        **changes,
    }
    return [f"--{name}={value}" for name, value in flags.items()]
