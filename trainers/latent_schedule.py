"""How many rollouts of a group get a prefix, as training goes on (eq. 14 of arXiv 2512.17206)."""

import math
from dataclasses import dataclass

# Fraction of training at which rho reaches 0 where `latent_schedule_end` is not given; None: it never does.
LATENT_SCHEDULES = {"two-phase": 0.5, "linear-decay": 1.0, "cosine-decay": 1.0, "constant": None}

# Far below any share that a schedule can tell apart, far above the rounding of `rho * group_size`.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class LatentSchedule:
    r"""
    The fraction rho of guided rollouts within each group as a function of training progress tau (eq. 14).

    With e = `end`: `"two-phase"` is 1 while tau < e, then 0; `"linear-decay"` is 1 - tau / e; `"cosine-decay"` is
    (1 + cos(pi * tau / e)) / 2; both are 0 from tau = e on; `"constant"` is 1. The paper's two are `"two-phase"` with
    e = 0.5 and `"linear-decay"` with e = 1.

    Args:
        name (`str`): `"two-phase"`, `"linear-decay"`, `"cosine-decay"` or `"constant"`.
        end (`float`, *optional*): e, in (0, 1]. Defaults to 0.5 for `"two-phase"` and 1 for the decays. Must stay
            `None` for `"constant"`.
        fraction (`float`, defaults to 1.0): Factor on the schedule, in [0, 1].

    Raises:
        ValueError: If a field is outside of what it allows.
    """

    name: str
    end: float | None = None
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in LATENT_SCHEDULES:
            raise ValueError(f"`latent_schedule` must be one of {', '.join(LATENT_SCHEDULES)}; got {self.name!r}.")
        if self.end is not None and self.name == "constant":
            raise ValueError(
                f"`latent_schedule_end` is {self.end}, but `latent_schedule='constant'` never reaches 0. Leave "
                "`latent_schedule_end` unset, or use 'two-phase' to stop at that point."
            )
        if self.end is not None and not 0 < self.end <= 1:
            raise ValueError(
                f"`latent_schedule_end` must be a fraction of training in (0, 1], got {self.end}. To train without "
                "latents set `num_prefix_tokens=0`."
            )
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"`latent_fraction` must be in [0, 1], got {self.fraction}.")

    def rho(self, progress: float) -> float:
        """
        Args:
            progress (`float`): tau = global step / number of training steps, in [0, 1].

        Returns:
            `float`: rho in [0, 1].

        Raises:
            ValueError: If `progress` is outside of [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"`progress` must be in [0, 1], got {progress}.")
        if self.name == "constant":
            return self.fraction
        end = self.end if self.end is not None else LATENT_SCHEDULES[self.name]
        assert end is not None
        if progress >= end:
            return 0.0
        if self.name == "two-phase":
            return self.fraction
        if self.name == "linear-decay":
            return self.fraction * (1 - progress / end)
        return self.fraction * (1 + math.cos(math.pi * progress / end)) / 2

    def num_guided(self, progress: float, group_size: int) -> int:
        """
        The number of guided rollouts in a group, floor(rho * G + 0.5): exact, not a coin per rollout.

        Args:
            progress (`float`): tau, in [0, 1].
            group_size (`int`): G.

        Returns:
            `int`: 0 to G.
        """
        return math.floor(self.rho(progress) * group_size + 0.5 + _ROUNDING)
