"""GRPO whose rollouts start from drawn latents (eq. 12-14 of arXiv 2512.17206)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig, GRPOTrainer

from .palette_arguments import PaletteRolloutArguments
from .palette_rollout_mixin import PaletteRolloutMixin
from .palette_trainer_mixin import default_output_dir

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .adapter_defaults import fitted_peft_config as fitted_peft_config
    from .converted_weights import needs_conversion as needs_conversion
    from .epoch_order import EpochOrder as EpochOrder
    from .hub_pushes import HubPushMixin as HubPushMixin
    from .image_prompts import with_images as with_images
    from .latent_draws import keyed_generator as keyed_generator
    from .latent_schedule import LatentSchedule as LatentSchedule
    from .latent_sensitivity import LatentWashoutWarning as LatentWashoutWarning
    from .lent_checkpoint import lent_checkpoint as lent_checkpoint
    from .message_images import MessageImages as MessageImages
    from .palette_model_card import hub_id as hub_id
    from .resume_mixin import ResumeMixin as ResumeMixin
    from .rollout_metrics import ScoredRollouts as ScoredRollouts
    from .vllm_rollouts import check_reads_text as check_reads_text
    from .washout_monitor import WashoutMonitorMixin as WashoutMonitorMixin
    from .whole_checkpoints import checkpoint_step as checkpoint_step


@dataclass
class PaletteGRPOConfig(PaletteRolloutArguments, GRPOConfig):
    r"""
    TRL's [`~trl.GRPOConfig`] with the palette's arguments: see [`PaletteArguments`] and [`PaletteRolloutArguments`].
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "latent_domain"]  # noqa: RUF012


class PaletteGRPOTrainer(PaletteRolloutMixin, GRPOTrainer):
    r"""
    GRPO with latent-guided rollouts (Reasoning Palette, arXiv 2512.17206).

    In every group, floor(rho * G + 0.5) rollouts start from a prefix of L latent tokens and the rest run without;
    `args.latent_schedule` moves rho with training progress. The gradient flows as in GRPO; the palette is frozen.

    What changes with respect to [`~trl.GRPOTrainer`] is `_tokenize_prompts` (prefixes go in),
    `_get_per_token_logps_and_entropies` and `_generate_and_score_completions` (what goes with prompts beside their ids
    fits prefixes and rows of text among images), `_calculate_rewards` (what prefixes do is logged under `latent/`, and
    every rollout's code becomes the `latent_code` column of the completions table, -1 without a prefix), `log` (the
    washout monitor), `create_model_card` (a section on the palette), `_save` (a palette is kept beside a LoRA
    adapter), `_get_train_sampler` and what [`ResumeMixin`] (a killed run goes on as if nothing had happened) and
    [`HubPushMixin`] (pushes of whole checkpoints) list. With `num_prefix_tokens=0` training is bit-identical to stock.

    **Logged under `latent/`** are `rho`, `prefix_tokens` and what [`rollout_metrics`] takes of each generation: reward
    and length of guided and unguided rollouts, groups without variance, distinct codes per group; and `sensitivity`,
    the washout monitor's figure ([`WashoutMonitorMixin`]). A code of the completions table replays its rollout's
    latent: `model.generate(..., latent=code, num_prefix_tokens=L, latent_tile=...)`. To make a domain of the latents
    that did well, pass a [`BestLatentsCallback`].

    **Images.** With a vision-language model, prompts may have images, in the columns `images` or `image` as TRL takes
    them. The prefix stands in front of text and images. Among rows with images there may be rows of text, whose
    `images` are an empty list. Images that messages name (paths, URLs, limits of their own) are put into a column
    before, by [`images_to_column`].

    Example:

    ```python
    trainer = PaletteGRPOTrainer(
        model="my-org/qwen3-palette",
        reward_funcs=accuracy_reward,
        args=PaletteGRPOConfig(latent_schedule="linear-decay"),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    From a checkpoint on the Hub, with TRL and without this package (the other trainers likewise):

    ```python
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name = "trainers/palette_grpo_trainer.PaletteGRPOTrainer"
    PaletteGRPOTrainer = get_class_from_dynamic_module(name, "my-org/qwen3-palette")
    args = PaletteGRPOTrainer.config_class(latent_schedule="linear-decay")
    ```

    Attributes:
        config_class: [`PaletteGRPOConfig`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            A palette model, the id or path of a palette checkpoint, or, with `palette`, any causal or
            vision-language model.
        reward_funcs: As in [`~trl.GRPOTrainer`].
        args ([`PaletteGRPOConfig`], *optional*): Configuration.
        palette (`PaletteVAE` or `str`, *optional*): A palette, or the path or id of a palette checkpoint, for `model`.
        kwargs: Everything else that [`~trl.GRPOTrainer`] takes. A `rollout_func` must call
            [`~PaletteRolloutMixin.insert_latents`] and return what it got from there as `prompt_ids`. A `peft_config`
            is completed for the base (see [`fitted_peft_config`]).

    Raises:
        ValueError: If the model has no palette, if L, the domain or the lengths do not fit it, or for settings that
            latent prefixes cannot work with (images with vLLM, adapters on the embedding or from `add_adapter`,
            context parallelism).
    """

    _tag_names = ["trl", "grpo", "reasoning-palette"]  # noqa: RUF012
    _name = "GRPO with Reasoning Palette"
    config_class = PaletteGRPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PaletteGRPOConfig | None = None,
        *,
        palette: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else PaletteGRPOConfig(default_output_dir(model, "GRPO"))
        super().__init__(model, reward_funcs, args, palette=palette, **kwargs)
