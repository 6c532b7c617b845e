"""Latent prefixes in the rollouts of GRPO and RLOO: the mixin both trainers share."""

import itertools
import warnings
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.trainer.utils import RepeatSampler

from .adapter_defaults import fitted_peft_config
from .epoch_order import EpochOrder
from .image_prompts import (
    TOKEN_TYPES,
    as_tensors,
    check_messages,
    image_token_ids,
    images_by_row,
    padding_left,
    widen_token_types,
    with_images,
    without_absent_images,
    without_padding,
)
from .latent_schedule import LatentSchedule
from .lent_checkpoint import lent_checkpoint
from .palette_trainer_mixin import default_processing_class, has_palette, prepare_model
from .rollout_metrics import UNGUIDED, ScoredRollouts, rollout_metrics, weighted_rewards
from .vllm_rollouts import check_engine, check_reads_text, prepare_engine, send_every_prompt
from .washout_monitor import WashoutMonitorMixin

# Prompts that the sensitivity to the latent is measured on: 32 short rows, about 3% of a step of 64 rollouts of 128
# tokens (measured on a CPU), every ten steps.
NUM_PROMPTS = 4


def _check_reference(model: Any, reference: Any) -> None:
    """The reference must read the model's latent ids as the model does."""
    if not has_palette(reference) or reference.latent_fingerprint() != model.latent_fingerprint():
        raise ValueError(
            f"The reference model, loaded from {reference.config.name_or_path!r}, has another palette than `model`: "
            "the palette in memory has changed since it was loaded (a domain added, for instance). Save the model and "
            "pass the folder as `model`, or set `beta=0`."
        )


class PaletteRolloutMixin(WashoutMonitorMixin):
    """
    Overrides `_tokenize_prompts`, where guided rollouts get their prefix, `_get_per_token_logps_and_entropies`, where
    the token types of prompts with images grow by it, `_calculate_rewards`, to log what prefixes do, `log` (the
    washout monitor, on the first 4 training prompts), `_generate`, to check what a `rollout_func` returns, and
    `_get_train_sampler`, so that a resumed run goes on in its epoch's own order. The ids travel with the prompt, so
    rollout, scoring and reference model see the same latent.

    Callbacks with a method `on_rollouts(args, state, control, rollouts)` get every generation as [`ScoredRollouts`],
    on every process, once its rewards are known.
    """

    num_generations: int
    num_generations_eval: int
    reward_weights: torch.Tensor
    callback_handler: Any
    control: Any
    train_dataset: Any
    _metrics: dict[str, Any]
    _way_out_of_washout = "Lower `learning_rate`, raise `beta`, or stop earlier."

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *, palette: Any = None, **kwargs: Any
    ) -> None:
        model = prepare_model(model, palette, args, kwargs.get("quantization_config"))
        kwargs["peft_config"] = fitted_peft_config(kwargs.get("peft_config"), model, args)
        given = kwargs.get("processing_class")
        kwargs["processing_class"] = default_processing_class(model, given)
        if given is None or args.num_prefix_tokens > 0:
            kwargs["processing_class"] = padding_left(kwargs["processing_class"])
        if args.use_vllm and args.num_prefix_tokens > 0:
            check_reads_text(kwargs["processing_class"])
            prepare_engine(args)
        with lent_checkpoint(model, args, kwargs["processing_class"], kwargs.get("peft_config")):
            super().__init__(model, reward_funcs, args, **kwargs)  # type: ignore[call-arg]
        self._latent_schedule: LatentSchedule = args.build_latent_schedule()
        self._drawn: tuple[str, torch.Tensor] | None = None  # mode and codes of the generation at work
        self._num_guided = 0  # in each group of the generation at work
        self._inserted: list[list[int]] | None = None  # what `insert_latents` made of its prompts
        self._warned_of_positions = False
        self.check_palette_setup()

    def check_palette_setup(self) -> None:
        super().check_palette_setup()
        if self.args.num_prefix_tokens == 0:
            return
        positions = getattr(self.palette_model.config.get_text_config(), "max_position_embeddings", None)
        needed = self.args.num_prefix_tokens + (self.args.max_completion_length or 0)
        if positions is not None and needed >= positions:
            raise ValueError(
                f"`num_prefix_tokens` ({self.args.num_prefix_tokens}) and `max_completion_length` "
                f"({self.args.max_completion_length}) leave no room for a prompt in the model's {positions} "
                "positions. Lower one of them."
            )
        if self.ref_model is not None:  # type: ignore[attr-defined]
            _check_reference(self.palette_model, self.accelerator.unwrap_model(self.ref_model))  # type: ignore[attr-defined]
        if self.args.use_vllm:
            check_reads_text(self.processing_class)  # type: ignore[attr-defined]  # TRL has loaded one now
            engine = self.vllm_generation  # type: ignore[attr-defined]
            check_engine(engine, self.palette_model.latent_fingerprint(), self.accelerator.is_main_process)
            send_every_prompt(engine, lambda: self.uses_latents and self._num_guided > 0)
        generate_every = self.args.steps_per_generation * self.args.num_iterations
        micro_steps = self.args.save_steps * self.args.gradient_accumulation_steps
        if self.args.save_strategy == "steps" and self.args.save_steps >= 1 and micro_steps % generate_every:
            warnings.warn(
                f"Checkpoints every {self.args.save_steps:g} steps fall between generations (one every "
                f"{generate_every} micro-steps, {micro_steps:g} per checkpoint). TRL does not save its rollout "
                "buffer, so a resumed run samples anew and will differ from an unbroken one. Choose `save_steps` so "
                "that `save_steps * gradient_accumulation_steps` is a multiple of "
                "`steps_per_generation * num_iterations` for exact resuming.",
                stacklevel=2,
            )
        if self._is_vlm:  # type: ignore[attr-defined]
            for row in itertools.islice(self.train_dataset, NUM_PROMPTS):
                check_messages(row.get("prompt"))
        self._choose_monitor_prompts()

    def _choose_monitor_prompts(self) -> None:
        """
        The first training prompts, tokenised as rollouts are. Those that a `rollout_func` or an environment makes are
        not known before it has made them: the ones of the first generation of this process are taken, see
        [`insert_latents`].
        """
        made_later = any(getattr(self, name, None) is not None for name in ("rollout_func", "environment_factories"))
        if self.args.latent_sensitivity_steps > 0 and not made_later:
            prompts = [with_images(row) for row in itertools.islice(self.train_dataset, NUM_PROMPTS)]
            tokenize = super()._tokenize_prompts  # type: ignore[misc]
            tokenized = [tokenize([prompt]) for prompt in prompts]
            fields = [as_tensors(fields) for _, _, fields in tokenized] if self._is_vlm else None  # type: ignore[attr-defined]
            self.monitor_washout([ids[0] for ids, _, _ in tokenized], fields)

    def insert_latents(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """
        Puts the prefixes of the current generation into tokenised prompts: what a `rollout_func` calls on its prompts
        before it generates, once per generation. Its returned `prompt_ids` must be these.

        Args:
            prompt_ids (`list[list[int]]`): This process's prompts, with the repeats of a group next to each other, as
                the trainer hands them out.

        Returns:
            `list[list[int]]`: The prompts; those of guided rollouts with L latent ids.

        Raises:
            ValueError: If it was called before in this generation: a rollout has one prefix, in all of its turns.
        """
        if not self.uses_latents:
            return prompt_ids
        if self._inserted:
            raise ValueError(
                "`insert_latents` was called twice in one generation. Call it once, on all prompts, before the first "
                "turn, and go on from what it returned."
            )
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            if self._monitor_prompts is None and self.args.latent_sensitivity_steps > 0:
                images = image_token_ids(self.palette_model.config)  # whose pixels are not at hand here
                distinct = dict.fromkeys(tuple(prompt) for prompt in gather_object(prompt_ids))
                prompts = [list(prompt) for prompt in distinct if not images.intersection(prompt)]
                self.monitor_washout(prompts[:NUM_PROMPTS])
            self.log_initial_sensitivity()
        codes = self._draw_codes(mode, len(prompt_ids))
        self._drawn = (mode, codes)
        model = self.palette_model
        prefixes = model.latent_ids(
            codes.clamp(min=0), self.args.num_prefix_tokens, latent_tile=self.args.latent_tile
        ).tolist()
        guided_ids = [
            model.insert_latent_ids(prompt, prefix) if code != UNGUIDED else prompt
            for prompt, prefix, code in zip(prompt_ids, prefixes, codes.tolist(), strict=True)
        ]
        if self._inserted is not None:
            self._inserted = [list(ids) for ids in guided_ids]  # a `rollout_func` may change its lists
        self._warn_of_positions(max(map(len, prompt_ids), default=0))
        return guided_ids

    def _warn_of_positions(self, longest: int) -> None:
        """TRL sets no limit on prompts: those that fit without a prefix only are said aloud, once, and not cut."""
        positions = getattr(self.palette_model.config.get_text_config(), "max_position_embeddings", None)
        length, budget = self.args.num_prefix_tokens, self.args.max_completion_length
        if self._warned_of_positions or positions is None or budget is None:
            return
        if longest + budget <= positions < longest + budget + length:
            self._warned_of_positions = True
            warnings.warn(
                f"A prompt of {longest} tokens, its prefix of {length} and `max_completion_length`={budget} exceed "
                f"the model's {positions} positions. Lower `max_completion_length` to "
                f"{positions - longest - length}, or leave such prompts out.",
                stacklevel=2,
            )

    def _generate(self, prompts: list) -> Any:
        self._inserted = []
        output = super()._generate(prompts)  # type: ignore[misc]
        inserted, self._inserted = self._inserted, None
        if inserted and getattr(self, "rollout_func", None) is not None:
            returned = [list(map(int, ids)) for ids in output[0]]
            if returned != inserted:
                raise ValueError(
                    "`rollout_func` returned other `prompt_ids` than `trainer.insert_latents` did, so the loss would "
                    "be taken under other prefixes than the rollouts were sampled under. Return what "
                    "`insert_latents` returned, whole and in its order; what came later belongs to `completion_ids`."
                )
        return output

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        if not isinstance(sampler, RepeatSampler):
            return sampler
        return EpochOrder(sampler, lambda: int(self.state.epoch or 0))

    def _group_size(self, mode: str) -> int:
        return self.num_generations if mode == "train" else self.num_generations_eval

    def _progress(self) -> float:
        """tau of eq. 14."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def _draw_codes(self, mode: str, num_rollouts: int) -> torch.Tensor:
        """
        Codes (num_rollouts,) of this process's slice of the global batch. The first rollouts of each group are guided:
        as many as the schedule says in training, all of them in an evaluation with latents.
        """
        group_size = num_guided = self._group_size(mode)
        if mode == "train":
            num_guided = self._latent_schedule.num_guided(self._progress(), group_size)
        self._num_guided = num_guided
        first = self.accelerator.process_index * num_rollouts
        first_group = self.take_draws(mode, -(-num_rollouts * self.accelerator.num_processes // group_size))
        drawn: dict[int, torch.Tensor] = {}
        codes = torch.full((num_rollouts,), UNGUIDED, dtype=torch.int64)
        for index in range(num_rollouts):
            group, member = divmod(first + index, group_size)
            if member >= num_guided:
                continue
            if group not in drawn:
                drawn[group] = self.palette_model.draw_codes(
                    1 if self.args.latent_per == "prompt" else group_size,
                    domain=self.args.latent_domain,
                    generator=self.latent_generator(mode, 0, first_group + group),
                ).expand(group_size)
            codes[index] = drawn[group][member]
        return codes

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, Any]]:
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)  # type: ignore[misc]
        if images is not None:
            # TRL 1.16 has None for a row of text among rows with images, which transformers' processors refuse.
            images = [row or [] for row in images]
        if self._is_vlm and self.args.num_prefix_tokens > 0:  # type: ignore[attr-defined]
            prompt_ids, fields = without_padding(prompt_ids, fields, self._tokenizer)  # type: ignore[attr-defined]
        if not self.uses_latents:
            return prompt_ids, images, fields
        guided_ids = self.insert_latents(prompt_ids)
        for name in TOKEN_TYPES:
            if name in fields:
                rows = zip(guided_ids, fields[name], strict=True)
                # In front, where the prefix is, or right behind a BOS of the same type.
                fields[name] = [[0] * (len(guided) - len(row)) + list(row) for guided, row in rows]
        return guided_ids, images, fields

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        if self._is_vlm:  # type: ignore[attr-defined]
            # TRL has the token types of the prompts made anew for scoring, and they are as wide as the longest prompt
            # is without its prefix. Qwen refuses short ones, Gemma 3 would take other tokens for its images.
            kwargs = images_by_row(widen_token_types(kwargs, input_ids.shape[1]))
            model = without_absent_images(model, image_token_ids(self.palette_model.config))
        return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)  # type: ignore[misc]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        return images_by_row(super()._generate_and_score_completions(inputs))  # type: ignore[misc]

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        drawn, self._drawn = self._drawn, None
        bypassed = drawn is None and self.uses_latents and getattr(self, "rollout_func", None) is not None
        if bypassed or (drawn is not None and len(drawn[1]) != len(prompts)):
            raise ValueError(
                "`rollout_func` bypasses the trainer's tokenisation, and with it the latent prefixes. Call "
                "`prompt_ids = trainer.insert_latents(prompt_ids)` once on all prompts in your rollout_func, generate "
                "from these ids and return them as `prompt_ids`; or set `num_prefix_tokens=0`."
            )
        if drawn is not None:
            self._log_completion_extra("latent_code", drawn[1].tolist())  # type: ignore[attr-defined]
        rewards_per_func = super()._calculate_rewards(  # type: ignore[misc]
            inputs, prompts, completions, completion_ids_list
        )
        if drawn is not None:
            self._report_rollouts(*drawn, rewards_per_func, completion_ids_list)
        return rewards_per_func

    def _report_rollouts(
        self, mode: str, codes: torch.Tensor, rewards_per_func: torch.Tensor, completion_ids_list: list[list[int]]
    ) -> None:
        """Logs a generation's figures and hands it to the callbacks that have an `on_rollouts`."""
        device = self.accelerator.device
        lengths = torch.tensor([len(ids) for ids in completion_ids_list], dtype=torch.float32, device=device)
        rollouts = ScoredRollouts(
            mode,
            self.accelerator.gather(codes.to(device)).cpu(),
            weighted_rewards(rewards_per_func, self.reward_weights).cpu(),
            self.accelerator.gather(lengths).cpu(),
            self._group_size(mode),
        )
        metrics = {"prefix_tokens": float(self.args.num_prefix_tokens), **rollout_metrics(rollouts)}
        if mode == "train":
            metrics["rho"] = self._latent_schedule.rho(self._progress())
        for name, value in metrics.items():
            self._metrics[mode][f"latent/{name}"].append(value)
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "on_rollouts"):
                callback.on_rollouts(self.args, self.state, self.control, rollouts=rollouts)
