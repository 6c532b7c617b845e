"""Training: the VAE on traces, the SFT warm-up, and GRPO and RLOO with latent-guided rollouts.

The order of the stages: `palette_vae_trainer` (with `traces`), `palette_sft_trainer`, `palette_grpo_trainer` or
`palette_rloo_trainer`. What the last three share: `palette_arguments`, `palette_trainer_mixin`, `latent_draws`;
prefixes in training batches are `prefix_insertion`, in rollouts `palette_rollout_mixin` and `latent_schedule`.
"""
