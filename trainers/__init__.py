"""Training: the VAE on traces, the SFT warm-up, and GRPO and RLOO with latent-guided rollouts.

The order of the stages: `palette_vae_trainer` (with `traces`), `palette_sft_trainer`, `palette_grpo_trainer` or
`palette_rloo_trainer`. What the last three share: `palette_arguments`, `palette_trainer_mixin`, `latent_draws`;
prefixes in training batches are `prefix_insertion`, in rollouts `palette_rollout_mixin` and `latent_schedule`. What is
logged of latents: `rollout_metrics` and `washout_monitor`; `best_latents` makes a domain of those that did well.
Images that messages name by path or URL become a column in `message_images`.
Killed runs go on by `resume_mixin`, `whole_checkpoints` and `epoch_order`; `hub_pushes` publishes them.

Names are imported when they are used: the VAE's training needs no TRL.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .best_latents import BestLatentsCallback, fit_domain_from_codes
    from .message_images import images_to_column, load_message_images
    from .palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer
    from .palette_rloo_trainer import PaletteRLOOConfig, PaletteRLOOTrainer
    from .palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer
    from .palette_vae_config import PaletteVAEConfig
    from .palette_vae_trainer import PaletteVAETrainer
    from .rollout_metrics import ScoredRollouts

__all__ = [
    "BestLatentsCallback",
    "PaletteGRPOConfig",
    "PaletteGRPOTrainer",
    "PaletteRLOOConfig",
    "PaletteRLOOTrainer",
    "PaletteSFTConfig",
    "PaletteSFTTrainer",
    "PaletteVAEConfig",
    "PaletteVAETrainer",
    "ScoredRollouts",
    "fit_domain_from_codes",
    "images_to_column",
    "load_message_images",
]

_MODULES = {
    "BestLatentsCallback": "best_latents",
    "PaletteGRPO": "palette_grpo_trainer",
    "PaletteRLOO": "palette_rloo_trainer",
    "PaletteSFT": "palette_sft_trainer",
    "PaletteVAE": "palette_vae_trainer",
    "ScoredRollouts": "rollout_metrics",
    "fit_domain_from_codes": "best_latents",
    "images_to_column": "message_images",
    "load_message_images": "message_images",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name.removesuffix("Config").removesuffix("Trainer")]
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
