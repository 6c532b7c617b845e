"""The palette's training arguments, mixed into TRL's configs."""

import math
from dataclasses import dataclass, field
from typing import Any

from .latent_schedule import LATENT_SCHEDULES, LatentSchedule


@dataclass
class PaletteArguments:
    r"""
    Arguments of every trainer that puts latent prefixes in front of prompts.

    Parameters:
        num_prefix_tokens (`int`, *optional*, defaults to `8`):
            L, the number of prefix tokens. 0 trains exactly as the stock trainer does.
        latent_domain (`str` or `dict[str, float]`, *optional*):
            Where latents are drawn from. `None`: the prior N(0, I) (eq. 9). A domain's name: its Gaussian. A mapping
            from names to weights: a mixture; weights are normalised.
        latent_tile (`bool`, *optional*, defaults to `False`):
            Whether one draw is repeated L times instead of L independent draws.
        latent_seed (`int`, *optional*):
            Seed of the draws. Defaults to `seed`. Draws do not depend on the number of processes.
        latent_eval (`bool`, *optional*, defaults to `False`):
            Whether evaluation uses prefixes too. By default it measures the model as it is without one.
        latent_sensitivity_steps (`int`, *optional*, defaults to `10`):
            Least number of steps between two measurements of `latent/sensitivity`, which are made at logging steps.
            0 turns them off. See [`WashoutMonitorMixin`].
    """

    num_prefix_tokens: int = field(
        default=8,
        metadata={"help": "L, the number of prefix tokens. 0 trains exactly as the stock trainer does."},
    )
    latent_domain: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Where latents are drawn from: None for the prior, a domain's name, or a JSON mapping from names "
            "to weights."
        },
    )
    latent_tile: bool = field(
        default=False,
        metadata={"help": "Whether one draw is repeated L times instead of L independent draws."},
    )
    latent_seed: int | None = field(default=None, metadata={"help": "Seed of the draws. Defaults to `seed`."})
    latent_eval: bool = field(default=False, metadata={"help": "Whether evaluation uses prefixes too."})
    latent_sensitivity_steps: int = field(
        default=10,
        metadata={"help": "Least number of steps between two measurements of `latent/sensitivity`. 0: never."},
    )

    def __post_init__(self) -> None:
        if self.num_prefix_tokens < 0:
            raise ValueError(
                f"`num_prefix_tokens` must be at least 0, got {self.num_prefix_tokens}. 0 trains without prefixes."
            )
        if self.latent_seed is not None and self.latent_seed < 0:
            raise ValueError(f"`latent_seed` must be at least 0, or None for `seed`, got {self.latent_seed}.")
        if self.latent_sensitivity_steps < 0:
            raise ValueError(
                "`latent_sensitivity_steps` must be at least 0, where 0 never measures; got "
                f"{self.latent_sensitivity_steps}."
            )
        super().__post_init__()  # type: ignore[misc]
        # Behind the call that turns the JSON of a command line into a dict (`_VALID_DICT_FIELDS`).
        _check_latent_domain(self.latent_domain)


@dataclass
class PaletteRolloutArguments(PaletteArguments):
    r"""
    Arguments of the trainers that sample rollouts: which rollouts of a group are guided, and when (eq. 14).

    Parameters:
        latent_schedule (`str`, *optional*, defaults to `"two-phase"`):
            How the guided fraction of each group changes with training progress tau: `"two-phase"` (1 while tau <
            0.5, then 0), `"linear-decay"` (1 - tau), `"cosine-decay"`, or `"constant"`. See [`LatentSchedule`].
        latent_schedule_end (`float`, *optional*):
            Fraction of training at which the schedule reaches 0: 0.5 by default for `"two-phase"`, 1 for the decays.
            Refused with `"constant"`.
        latent_fraction (`float`, *optional*, defaults to `1.0`):
            rho is this times the schedule. A group of G has exactly floor(rho * G + 0.5) guided rollouts.
        latent_per (`str`, *optional*, defaults to `"rollout"`):
            `"rollout"`: every guided rollout has its own draw. `"prompt"`: those of one group share a draw.
    """

    latent_schedule: str = field(
        default="two-phase",
        metadata={
            "help": "How the guided fraction of each group changes with training progress.",
            "choices": list(LATENT_SCHEDULES),
        },
    )
    latent_schedule_end: float | None = field(
        default=None,
        metadata={"help": "Fraction of training at which the schedule reaches 0. Refused with 'constant'."},
    )
    latent_fraction: float = field(default=1.0, metadata={"help": "Factor on the schedule, in [0, 1]."})
    latent_per: str = field(
        default="rollout",
        metadata={
            "help": "'rollout': a draw for every guided rollout. 'prompt': the guided rollouts of a group share one.",
            "choices": ["rollout", "prompt"],
        },
    )

    def __post_init__(self) -> None:
        self.build_latent_schedule()
        if self.latent_per not in ("rollout", "prompt"):
            raise ValueError(f"`latent_per` must be 'rollout' or 'prompt', got {self.latent_per!r}.")
        super().__post_init__()

    def build_latent_schedule(self) -> LatentSchedule:
        """The schedule that the arguments describe."""
        return LatentSchedule(self.latent_schedule, self.latent_schedule_end, self.latent_fraction)


def _check_latent_domain(latent_domain: Any) -> None:
    if latent_domain is None or (isinstance(latent_domain, str) and latent_domain):
        return
    if not isinstance(latent_domain, dict):
        raise ValueError(
            "`latent_domain` must be None (the prior), the name of a domain, or a mapping from names to weights; got "
            f"{latent_domain!r}."
        )
    for name, weight in latent_domain.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"`latent_domain` gives domain {name!r} the weight {weight!r}; weights are finite numbers of at "
                "least 0."
            )
    if not sum(latent_domain.values()) > 0:
        raise ValueError(
            f"`latent_domain` is {latent_domain}, which has no positive weight. Name a domain, or use None for the "
            "prior."
        )
