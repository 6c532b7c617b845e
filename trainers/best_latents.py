"""Keeps the codes of the best rollouts of a run and makes a domain of their latents."""

import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .palette_trainer_mixin import has_palette, palette_model_of
from .rollout_metrics import UNGUIDED, ScoredRollouts

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .converted_weights import needs_conversion as needs_conversion
    from .hub_pushes import HubPushMixin as HubPushMixin
    from .latent_draws import keyed_generator as keyed_generator
    from .latent_schedule import LatentSchedule as LatentSchedule
    from .palette_model_card import hub_id as hub_id
    from .resume_mixin import ResumeMixin as ResumeMixin
    from .whole_checkpoints import checkpoint_step as checkpoint_step

BEST_LATENTS_FILE = "best_latents.json"


def score_codes(rollouts: ScoredRollouts) -> list[tuple[float, int]]:
    r"""
    How much better than its group each latent did: the mean reward of its rollouts minus the mean of the group's
    rollouts that had another latent or none.

    A raw reward would favour easy prompts. With a draw per rollout this is the leave-one-out advantage of RLOO, which
    orders the rollouts of a group as GRPO's does. Where all rollouts of a group share one latent
    (`latent_per="prompt"` with rho = 1) nothing in the group can be compared with: the baseline is then the mean
    reward of the other groups of the generation.

    Args:
        rollouts ([`ScoredRollouts`]): A generation. Rollouts without a reward count neither way.

    Returns:
        `list[tuple[float, int]]`: (score, code) for every code that has a reward and a baseline.
    """
    size = rollouts.group_size
    groups = list(zip(rollouts.codes.split(size), rollouts.rewards.double().split(size), strict=True))
    scores = []
    for index, (codes, rewards) in enumerate(groups):
        for code in dict.fromkeys(codes.tolist()):
            if code == UNGUIDED:
                continue
            mine = rewards[codes == code]
            others = rewards[codes != code]
            if others.isnan().all():
                others = torch.cat([mine[:0], *(other for j, (_, other) in enumerate(groups) if j != index)])
            score = (mine.nanmean() - others.nanmean()).item()
            if not math.isnan(score):
                scores.append((score, code))
    return scores


def fit_domain_from_codes(
    model: Any, name: str, codes: Sequence[int], num_prefix_tokens: int, latent_tile: bool = False
) -> int:
    r"""
    Add a domain: the Gaussian of the latents that codes name.

    With independent draws every one of the L positions of a code is a sample: `generate(domain=name)` draws all
    positions from the one Gaussian. What matters only at one position is thus averaged over all of them. A code that
    is tiled, or of a palette whose latents make whole prefixes, has one latent, which is one sample.

    Args:
        model: The palette model, unwrapped.
        name (`str`): The domain's name. A name in use gets a new Gaussian under a new source number.
        codes (sequence of `int`): Codes, N of them.
        num_prefix_tokens (`int`): L that they were used with.
        latent_tile (`bool`, *optional*, defaults to `False`): Whether one latent was repeated L times.

    Returns:
        `int`: The source number of the domain.

    Raises:
        ValueError: As `PaletteVAE.fit_domain` does: for fewer than two samples, for samples that are all the same, and
            if the palette has no room for another domain.
    """
    drawn = torch.tensor(list(codes), dtype=torch.int64)
    latents = model.latents_from_codes(drawn, 1 if latent_tile else num_prefix_tokens, latent_tile)  # (N, L, Z)
    source = model.palette.fit_domain(name, latents.flatten(0, 1))
    model.config.domains = {name: dict(entry) for name, entry in model.palette.domains.items()}
    return source


class BestLatentsCallback(TrainerCallback, ExportableState):
    r"""
    Keeps the codes of the best guided rollouts of a GRPO or RLOO run and, when training ends, fits a Gaussian to their
    latents as a new domain: `trainer.save_model()` after that carries it, and `generate(domain="high-reward")` draws
    from it. The paper suggests the analysis; nothing says that strategies which won during training, when the policy
    was another, win at its end: evaluate the domain against the prior.

    A code's score is its reward less that of the rest of its group ([`score_codes`]). Only codes that did better than
    the rest (a score above 0) are kept; of equal scores the newest, since the policy moves on. A code that is drawn
    again keeps its higher score.

    The kept codes are written to `best_latents.json` in the output folder whenever a checkpoint is saved and at the
    end, and are part of every checkpoint's trainer state: a resumed run ends with the codes of the unbroken one. They
    are the same on every process. The palette itself does not change before training ends; after that it has a row
    more than the checkpoints before, so build the trainer anew to resume from one of these.

    Example:

    ```python
    trainer = PaletteGRPOTrainer(..., callbacks=[BestLatentsCallback("high-reward")])
    trainer.train()
    trainer.save_model()
    ```

    Args:
        domain (`str`, *optional*, defaults to `"high-reward"`):
            Name of the new domain.
        max_codes (`int`, *optional*, defaults to `256`):
            How many codes are kept.
        min_codes (`int`, *optional*, defaults to `16`):
            With fewer codes at the end of training no domain is fitted, and a warning says so.

    Raises:
        ValueError: For `max_codes` or `min_codes` out of range; and, when the trainer is built (or when training
            starts, for a callback that is added later), if the trainer draws no latents, if the palette has a domain
            of that name already, or if it has no room for another one.
    """

    def __init__(self, domain: str = "high-reward", max_codes: int = 256, min_codes: int = 16) -> None:
        if not isinstance(domain, str) or not domain.strip():
            raise ValueError(f"`domain` must be a non-empty string, got {domain!r}.")
        if not 2 <= min_codes <= max_codes:
            raise ValueError(
                f"`min_codes` must be at least 2 and at most `max_codes`, got min_codes={min_codes} and "
                f"max_codes={max_codes}."
            )
        self.domain, self.max_codes, self.min_codes = domain, max_codes, min_codes
        # [score, global step, code], best first.
        self.best: list[list[Any]] = []
        self._fitted_source: int | None = None

    @property
    def codes(self) -> list[int]:
        """The kept codes, best first."""
        return [code for _, _, code in self.best]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        settings = {"domain": self.domain, "max_codes": self.max_codes, "min_codes": self.min_codes}
        return {"args": settings, "attributes": {"best": [list(entry) for entry in self.best]}}

    def fit_domain(self, model: Any, args: Any) -> int:
        r"""
        Fit the domain to the codes kept so far: what happens at the end of training, for use at any other time. It
        changes the palette, so do it between runs, and on every process.

        Args:
            model: The trained model: as it is in the trainer, or the palette model itself.
            args ([`PaletteRolloutArguments`]): The trainer's config, for L and `latent_tile`.

        Returns:
            `int`: The source number of the domain.

        Raises:
            ValueError: As [`fit_domain_from_codes`] does.
        """
        self._fitted_source = fit_domain_from_codes(
            _unwrapped(model), self.domain, self.codes, args.num_prefix_tokens, args.latent_tile
        )
        return self._fitted_source

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._check(args, model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._check(args, model)
        mine = self._saved_states(state).get(self.domain)
        self.best = [list(entry) for entry in mine["attributes"]["best"]] if mine and state.global_step > 0 else []
        # A checkpoint of a run without this callback has no place for it, and the Trainer would fail to save.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_rollouts(self, args: Any, state: Any, control: Any, rollouts: ScoredRollouts, **kwargs: Any) -> None:
        """Takes in a generation; called by the trainer once its rewards are known."""
        if rollouts.mode != "train":
            return
        kept = {code: [score, step, code] for score, step, code in self.best}
        for score, code in score_codes(rollouts):
            if score > 0 and (code not in kept or score >= kept[code][0]):
                kept[code] = [score, state.global_step, code]
        self.best = sorted(kept.values(), reverse=True)[: self.max_codes]

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._saved_states(state)
        self._write(args, state, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        reason = f"and `min_codes` is {self.min_codes}."
        if len(self.best) >= self.min_codes:
            try:
                self.fit_domain(model, args)
                reason = ""
            except ValueError as error:  # a long run must not end in an error, with nothing saved
                reason = f"but: {error}"
        if reason:
            warnings.warn(
                f"No domain {self.domain!r} was fitted: {len(self.best)} latents did better than the rest of their "
                f"groups, {reason} Their codes are in {BEST_LATENTS_FILE}, for `fit_domain_from_codes`.",
                stacklevel=2,
            )
        self._write(args, state, model)

    def _saved_states(self, state: Any) -> dict[str, dict[str, Any]]:
        """By domain. With several callbacks of one class the Trainer keeps a list, to which every save appends."""
        saved = state.stateful_callbacks.get(type(self).__name__, [])
        newest = {entry["args"]["domain"]: entry for entry in (saved if isinstance(saved, list) else [saved])}
        if isinstance(saved, list):
            saved[:] = newest.values()
        return newest

    def _check(self, args: Any, model: Any) -> None:
        model = _unwrapped(model)
        if getattr(args, "num_prefix_tokens", 0) == 0 or not hasattr(args, "latent_per") or not has_palette(model):
            raise ValueError(
                "BestLatentsCallback keeps the latents of rollouts, and this trainer draws none. Use it with "
                "PaletteGRPOTrainer or PaletteRLOOTrainer and `num_prefix_tokens` of at least 1."
            )
        domains = model.palette.domains
        if self.domain in domains and domains[self.domain]["source"] != self._fitted_source:
            raise ValueError(
                f"BestLatentsCallback is to fit the domain {self.domain!r}, and the palette has a domain of that name "
                f"already. Choose another `domain`; taken are {sorted(domains)}."
            )
        taken, room = len(model.palette.domain_means), model.config.latent_codes.num_sources - 1
        room = min(room, getattr(sys.modules[type(model.palette).__module__], "MAX_DOMAINS", room))
        if taken >= room:
            raise ValueError(
                f"BestLatentsCallback is to fit the domain {self.domain!r}, but the palette has room for {room} "
                f"domain fits (a refit counts too) and {taken} are taken. Start from a palette with fewer domains, or "
                "leave the callback out."
            )

    def _write(self, args: Any, state: Any, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        content = {
            "domain": self.domain,
            "source": self._fitted_source,
            "num_prefix_tokens": args.num_prefix_tokens,
            "latent_tile": args.latent_tile,
            "palette_latent_seed": _unwrapped(model).config.latent_seed,  # with which codes keep their meaning
            "global_step": state.global_step,
            "codes": [{"code": code, "score": score, "step": step} for score, step, code in self.best],
        }
        os.makedirs(args.output_dir, exist_ok=True)
        with open(os.path.join(args.output_dir, BEST_LATENTS_FILE), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)


def _unwrapped(model: Any) -> Any:
    return palette_model_of(extract_model_from_parallel(model))
