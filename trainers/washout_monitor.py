"""Watches a training run for washout: a policy that learns to ignore its latent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from .latent_draws import keyed_generator
from .latent_sensitivity import NUM_CODES, latent_sensitivity, warn_if_blind, warn_if_washed_out
from .palette_trainer_mixin import PaletteTrainerMixin

SENSITIVITY = "latent/sensitivity"


class WashoutMonitorMixin(PaletteTrainerMixin):
    r"""
    Logs `latent/sensitivity`: how far, in nats, the first answer token depends on the latent (see
    [`latent_sensitivity`]), over 8 draws from where training draws and over the same few training prompts throughout.

    It is logged before training and then at logging steps, at least `latent_sensitivity_steps` apart, whatever share
    of rollouts is guided at the time. A warning says so when it falls below a quarter of its value before training, or
    when that value is no more than rounding: an opening that all answers share (`<think>`) hides what comes after it.
    Draws, prompts and the steps at which it is measured are the same after a resume and for every number of processes;
    only where a `rollout_func` or an environment makes the prompts, a resumed run takes new ones.

    The model is run without gradient in evaluation mode, one prompt at a time; no random number is drawn. Every
    process takes part and gets the same figure: FSDP and ZeRO-3 need all of them to put a layer together.
    """

    _monitor_prompts: Any = None  # list[list[int]] once they are chosen
    _monitor_fields: Any = None
    _monitor_prefixes: torch.Tensor
    _warned_of_washout = False
    _way_out_of_washout = "Lower `learning_rate`, or stop earlier."

    def monitor_washout(
        self, prompts: list[list[int]], fields: Sequence[Mapping[str, torch.Tensor]] | None = None
    ) -> None:
        """
        Sets what the sensitivity is measured on.

        Args:
            prompts (`list[list[int]]`): Token ids up to the first answer token, without a prefix; the same on every
                process.
            fields (sequence of `dict`, *optional*): Their images and token types; see [`latent_sensitivity`].
        """
        codes = self.palette_model.draw_codes(
            NUM_CODES,
            domain=self.args.latent_domain,
            generator=keyed_generator(self.latent_seed, "washout monitor"),
        )
        self._monitor_prompts, self._monitor_fields = prompts, fields
        self._monitor_prefixes = self.palette_model.latent_ids(
            codes, self.args.num_prefix_tokens, latent_tile=self.args.latent_tile
        )

    def log_initial_sensitivity(self) -> None:
        """Measures and logs the sensitivity before training; in a resumed run it is in the log already."""
        if self._is_monitored() and self._logged_sensitivity(self.state.log_history) is None:
            initial = self._measure_sensitivity()
            # The base class's method: those of TRL's trainers would also flush metrics and completions.
            Trainer.log(self, {SENSITIVITY: initial})  # type: ignore[arg-type]
            if self.accelerator.is_main_process:
                warn_if_blind(initial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._is_monitored():
            initial = self._logged_sensitivity(self.state.log_history)
            latest = self._logged_sensitivity(reversed(self.state.log_history))
            if latest is None or self.state.global_step - latest["step"] >= self.args.latent_sensitivity_steps:
                value = logs[SENSITIVITY] = self._measure_sensitivity()
                if initial is not None and not self._warned_of_washout and self.accelerator.is_main_process:
                    self._warned_of_washout = warn_if_washed_out(value, initial[SENSITIVITY], self._way_out_of_washout)
        super().log(logs, start_time)  # type: ignore[misc]

    def _is_monitored(self) -> bool:
        is_training = self.uses_latents and self.model.training
        return is_training and self.args.latent_sensitivity_steps > 0 and bool(self._monitor_prompts)

    @staticmethod
    def _logged_sensitivity(log_history: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The first entry that has one. The log is part of the trainer's state, which checkpoints keep."""
        return next((entry for entry in log_history if SENSITIVITY in entry), None)

    def _measure_sensitivity(self) -> float:
        # `self.model` is inside of DDP's and DeepSpeed's wrappers and is FSDP's own, which gathers the weights.
        with self.accelerator.autocast():
            return latent_sensitivity(
                self.model,
                self._monitor_prompts,
                self._monitor_prefixes,
                self.palette_model.insert_latent_ids,
                self._monitor_fields,
            )
