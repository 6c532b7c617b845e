"""How much the latent still decides, measured; the washout monitor logs it while a trainer runs."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from .image_prompts import TOKEN_TYPES, repeat_row

# Codes that are compared and prompts they are compared on; eight short forward passes per measurement.
NUM_CODES, NUM_PROMPTS = 8, 8
# A fall to a quarter is beyond the noise of eight prompts, and early enough to stop a run that is going wrong.
WASHOUT_RATIO = 0.25
# Rounding alone moves log-probabilities by this much: below it, a rise or fall means nothing.
ROUNDING = 1e-5


class LatentWashoutWarning(UserWarning):
    """The model is learning to ignore its latent."""


@torch.no_grad()
def latent_sensitivity(
    model: Any,
    prompts: Sequence[list[int]],
    prefixes: torch.Tensor,
    insert: Any,
    fields: Sequence[Mapping[str, torch.Tensor]] | None = None,
) -> float:
    r"""
    How far the first answer token depends on the latent: the Jensen-Shannon divergence, in nats, between its
    distributions under different latents, averaged over prompts.

    For K latents it is H(mean of the distributions) - mean of their H, which lies in [0, ln K]: 0 if the model does
    not look at the prefix at all, ln K if every latent leads to answers of its own. It equals the mutual information
    between the latent and the first answer token.

    Args:
        model (`PreTrainedModel`, `PeftModel` or a wrapper of one): Scored in evaluation mode; the mode of each of its
            modules is restored.
        prompts (sequence of `list[int]`): Token ids up to the answer.
        prefixes (`torch.Tensor` of shape `(K, L)`): Latent ids.
        insert (`Callable`): The palette model's `insert_latent_ids(token ids, latent ids)`.
        fields (sequence of `dict`, *optional*): For each prompt, what the model reads of it beside token ids (pixels,
            token types), as a processor makes it for one row.

    Returns:
        `float`: Mean divergence in nats.
    """
    # Module by module: `model.train()` would also wake what its owner keeps in evaluation mode.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        divergences = []
        for index, prompt in enumerate(prompts):
            rows = [insert(prompt, prefix) for prefix in prefixes.tolist()]
            input_ids = torch.tensor(rows, device=model.device)
            mask, (count, width) = torch.ones_like(input_ids), input_ids.shape
            images = repeat_row(fields[index], count, width, model.device) if fields else {}
            outputs = model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **images)
            log_probs = outputs.logits[:, -1].float().log_softmax(dim=-1)
            probs = log_probs.exp()
            entropies = -(probs * log_probs).sum(dim=-1)
            divergences.append(torch.special.entr(probs.mean(dim=0)).sum() - entropies.mean())
        return torch.stack(divergences).mean().clamp(min=0).item()
    finally:
        for module in training:
            module.training = True


def warn_if_washed_out(value: float, initial: float, way_out: str) -> bool:
    """
    Issues a [`LatentWashoutWarning`] if the sensitivity is below `WASHOUT_RATIO` of what it was before training.

    Args:
        value (`float`): Sensitivity now, in nats.
        initial (`float`): Sensitivity before training, in nats.
        way_out (`str`): What the warning advises.

    Returns:
        `bool`: Whether it warned.
    """
    if initial < ROUNDING or value >= WASHOUT_RATIO * initial:
        return False
    warnings.warn(
        f"Latent washout: the first answer token moves with the latent by {value:.2g} nats, before training it was "
        f"{initial:.2g}. The model is learning to ignore the prefix. {way_out}",
        LatentWashoutWarning,
        stacklevel=2,
    )
    return True


def warn_if_blind(initial: float) -> bool:
    """
    Issues a [`LatentWashoutWarning`] if the sensitivity before training is no more than rounding.

    Args:
        initial (`float`): Sensitivity before training, in nats.

    Returns:
        `bool`: Whether it warned.
    """
    if initial >= ROUNDING:
        return False
    warnings.warn(
        f"The first answer token does not move with the latent before training ({initial:.2g} nats), so its "
        "sensitivity cannot tell of washout. Where every answer opens alike (`<think>`), let the prompt end with that "
        "opening, as a chat template's generation prompt does. Where the model ignores the prefix, warm it up with "
        "`PaletteSFTTrainer`. `latent_sensitivity_steps=0` turns the measurement off.",
        LatentWashoutWarning,
        stacklevel=2,
    )
    return True


def prompt_of(row: dict[str, Any]) -> list[int]:
    """
    The context of the first answer token of a tokenised row: what comes before the first label, or the first half of
    the document where the whole of it is the answer.

    Args:
        row (`dict`): A row of TRL's prepared dataset, with `input_ids`, `labels` and, if packed, `seq_lengths`.

    Returns:
        `list[int]`: At least one token.
    """
    length = row["seq_lengths"][0] if row.get("seq_lengths") else len(row["input_ids"])
    tokens = list(row["input_ids"][:length])
    labels = list(row.get("labels") or tokens)[:length]
    first = next((index for index, label in enumerate(labels) if label != -100), 0)
    return tokens[: first or max(1, length // 2)]


def prompt_with_images(
    batch: Mapping[str, Any], image_tokens: Collection[int]
) -> tuple[list[int], dict[str, torch.Tensor]]:
    """
    The context of the first answer token of a collated row: as [`prompt_of`], but it ends behind the last image.

    Args:
        batch (`dict`): What TRL's vision collator returns for one row.
        image_tokens (collection of `int`): Ids that stand for pieces of images.

    Returns:
        Its token ids, and what a model reads beside them.
    """
    real = batch["attention_mask"][0].bool()
    tokens, labels = batch["input_ids"][0][real].tolist(), batch["labels"][0][real].tolist()
    behind_images = max((index + 1 for index, token in enumerate(tokens) if token in image_tokens), default=0)
    length = max(len(prompt_of({"input_ids": tokens, "labels": labels})), behind_images)
    fields = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask", "labels")}
    cut = {name: value[:, real][:, :length] for name, value in fields.items() if name in TOKEN_TYPES}
    return tokens[:length], {**fields, **cut}
