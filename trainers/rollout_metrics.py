"""What latents did in one generation: its rollouts, and the figures that are logged of them.

Shapes: N rollouts of all processes, in groups of G that lie next to each other.
"""

from dataclasses import dataclass
from typing import Any

import torch

UNGUIDED = -1  # in place of a code: this rollout ran without a prefix


@dataclass(frozen=True)
class ScoredRollouts:
    r"""
    The rollouts of one generation, those of all processes: the same on every process, on the CPU.

    Args:
        mode (`str`): `"train"` or `"eval"`.
        codes (`torch.Tensor` of shape `(N,)`, int64): Codes of the latents; `UNGUIDED` without a prefix.
        rewards (`torch.Tensor` of shape `(N,)`): Weighted sums of the reward functions' values; NaN where no function
            gave one.
        lengths (`torch.Tensor` of shape `(N,)`): Tokens of the completions, results of tools included.
        group_size (`int`): G, the rollouts per prompt.
    """

    mode: str
    codes: torch.Tensor
    rewards: torch.Tensor
    lengths: torch.Tensor
    group_size: int


def weighted_rewards(rewards_per_func: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Rewards as TRL's trainers sum them.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(N, F)`): Values of F reward functions; NaN where one gave none.
        weights (`torch.Tensor` of shape `(F,)`): `reward_weights`.

    Returns:
        `torch.Tensor` of shape `(N,)`: NaN where no function gave a value.
    """
    rewards = (rewards_per_func * weights.to(rewards_per_func.device)).nansum(dim=1)
    return rewards.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


def share_of_groups_without_variance(rewards: torch.Tensor) -> float | None:
    """
    Args:
        rewards (`torch.Tensor` of shape `(groups, G)`): NaN for what does not count.

    Returns:
        `float` or `None`: The share of groups whose rewards are all the same, among the groups with at least two; None
        where there is no such group.
    """
    shares = []
    for group in rewards:
        counted = group[~group.isnan()]
        if len(counted) > 1:
            shares.append(bool(torch.isclose(counted.max(), counted.min())))
    return sum(shares) / len(shares) if shares else None


def rollout_metrics(rollouts: ScoredRollouts) -> dict[str, float]:
    r"""
    The figures of one generation.

    - `guided_fraction`: the share of rollouts with a prefix.
    - `guided/reward`, `unguided/reward`, `guided/mean_length`, `unguided/mean_length` (tokens): means over those with
      and those without a prefix.
    - `frac_reward_zero_std`: the share of groups whose rewards are all the same and give no gradient. TRL's figure of
      this name is about the whole batch with `scale_rewards="batch"`; this one always is about groups.
    - `guided/frac_reward_zero_std`, `unguided/frac_reward_zero_std`: the share of groups whose rollouts with (without)
      a prefix all got the same reward, among the groups with at least two of them: whether latents make outcomes
      differ. Fewer rollouts agree more easily, so compare them where both have the same number.
    - `distinct_codes_per_group`: mean number of different latents, where any rollout has one.

    Args:
        rollouts ([`ScoredRollouts`]): The generation.

    Returns:
        `dict[str, float]`: Without the figures that have nothing to be taken of.
    """
    guided, size = rollouts.codes != UNGUIDED, rollouts.group_size
    found: dict[str, Any] = {
        "guided_fraction": guided.float().mean().item(),
        "frac_reward_zero_std": share_of_groups_without_variance(rollouts.rewards.view(-1, size)),
    }
    for name, members in (("guided", guided), ("unguided", ~guided)):
        if not members.any():
            continue
        rewards = rollouts.rewards.masked_fill(~members, torch.nan)
        found[f"{name}/mean_length"] = rollouts.lengths[members].float().mean().item()
        found[f"{name}/reward"] = None if rewards.isnan().all() else rewards.nanmean().item()
        found[f"{name}/frac_reward_zero_std"] = share_of_groups_without_variance(rewards.view(-1, size))
    if guided.any():
        distinct = [len(set(group.tolist()) - {UNGUIDED}) for group in rollouts.codes.split(size)]
        found["distinct_codes_per_group"] = sum(distinct) / len(distinct)
    return {name: value for name, value in found.items() if value is not None}
