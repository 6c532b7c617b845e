"""What keeps strategy tokens from being sampled by engines that only read weights.

A stock checkpoint has no field for it that every engine honours: `suppress_tokens` of the generation config is
transformers' alone (vLLM 0.32 reads neither it nor a list of bad words from the checkpoint). So the output side gives
these tokens a logit far below all others:

- `bias`: a head with a bias has a row of zeros and a bias of -1e6 for them.
- `layer_norm`: behind a LayerNorm with weight g and bias b, `sum(y / g) = sum(b / g)` for every hidden state y, since
  what the norm centres sums to zero. A head row along 1 / g has a constant logit.
- `channel`: behind an RMSNorm no linear row is negative for every hidden state (measured on the examples' trained
  base: its final hidden states lie in no half-space). So the model gets a channel that is constant, and the head rows
  of the strategies read nothing else; see `constant_channel.py`.
- `suppress_tokens`: nothing but the generation config: transformers alone. The head rows are the mean of the ordinary
  ones, whose logit is never the largest and whose probability is at most 1 / V.
"""

import math
from typing import Any

import torch
from torch import nn

GUARDS = ("auto", "bias", "layer_norm", "channel", "suppress_tokens")
# Logits below this are below all others by far; float16 cannot hold more.
GUARD_LOGIT = {torch.float16: -3e4}
DEFAULT_GUARD_LOGIT = -1e6
# The head's weight on the constant channel, which arrives there divided by the root mean square of the residual
# stream: up to 300 in the examples' base, more in models with massive activations.
CHANNEL_WEIGHT = {torch.float16: -6e4}
DEFAULT_CHANNEL_WEIGHT = -1e9


def choose_guard(model: Any, guard: str, final_norm: Any) -> str:
    """
    The guard that holds for this base.

    Raises:
        ValueError: for an unknown guard, and one that this base has no room for.
    """
    if guard not in GUARDS:
        raise ValueError(f"`guard` must be one of {GUARDS}, got {guard!r}.")
    if guard == "suppress_tokens":
        return guard
    way_out = "`guard='suppress_tokens'` exports for transformers alone"
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        raise ValueError(
            f"`guard`={guard!r}: this base caps its logits at {cap} (`final_logit_softcapping`), so no token can be "
            f"ruled out by its weights; {way_out}."
        )
    has_bias = getattr(model.get_output_embeddings(), "bias", None) is not None
    is_layer_norm = getattr(final_norm, "bias", None) is not None
    possible = ["bias"] if has_bias else ["layer_norm"] if is_layer_norm else ["channel"]
    if guard != "auto" and guard not in possible:
        raise ValueError(
            f"`guard`={guard!r} does not fit this base, whose last norm is a {type(final_norm).__name__} and whose "
            f"head has {'a' if has_bias else 'no'} bias. Use {possible[0]!r}, or 'auto'; {way_out}."
        )
    return possible[0]


def final_norm_of(model: Any, ids: torch.Tensor) -> tuple[Any, str, float]:
    """
    The norm in front of the head, its name, and what the first layer receives in units of the embedding's output
    (1, or the multiplier of Granite and Falcon-H1).

    Args:
        model: The model.
        ids (`torch.Tensor` of shape `(B, S)`): Ordinary tokens.
    """
    norms = {module: name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    width = model.get_output_embeddings().weight.shape[1]
    last: list[Any] = []
    embedded: list[torch.Tensor] = []
    received: list[torch.Tensor] = []

    def record_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].shape[-1] == width and args[0].dim() == 3:
            last[:] = [module]

    def record_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.append(args[0] if args else kwargs["hidden_states"])

    hooks = [module.register_forward_hook(record_norm) for module in norms]
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda _, args, output: embedded.append(output)))
    if stacks:
        hooks.append(stacks[0][0].register_forward_pre_hook(record_layer, with_kwargs=True))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise ValueError(
            f"{type(model).base_class.__name__} has no norm of the width of its head, so nothing can be built on it "
            "to rule tokens out. Use `guard='suppress_tokens'`, which exports for transformers alone."
        )
    multiplier = math.nan
    if received and embedded[0].shape == received[0].shape:
        first, rows = received[0].float(), embedded[0].float()
        ratio = float((first * rows).sum() / rows.square().sum())
        if torch.allclose(first, ratio * rows, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
            multiplier = ratio
    return last[0], norms[last[0]], multiplier


def guarded_head(
    guard: str, head: torch.Tensor, bias: torch.Tensor | None, norm: Any, rows: list[int], ordinary: int
) -> None:
    """
    Write, in place, the head rows of the tokens that must never be sampled.

    Args:
        guard (`str`): As [`choose_guard`] gave it.
        head (`torch.Tensor` of shape `(V, H)`): The head's weight; with the `channel` guard, its widened one, whose
            first new channel is the constant.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): Its bias.
        norm (`nn.Module`): The base's last norm.
        rows (`list[int]`): The tokens.
        ordinary (`int`): How many rows the tokenizer's ordinary tokens use.

    Raises:
        ValueError: if a LayerNorm leaves no direction of constant logit.
    """
    lowest = GUARD_LOGIT.get(head.dtype, DEFAULT_GUARD_LOGIT)
    head[rows] = 0
    if guard == "bias":
        assert bias is not None
        bias[rows] = lowest
    elif guard == "channel":
        head[rows, norm.weight.shape[0]] = CHANNEL_WEIGHT.get(head.dtype, DEFAULT_CHANNEL_WEIGHT)
    elif guard == "suppress_tokens":
        head[rows] = head[:ordinary].float().mean(0).to(head)
        if bias is not None:
            bias[rows] = bias[:ordinary].float().mean().to(bias)
    else:
        inverse = 1 / norm.weight.detach().double()
        constant = float((norm.bias.detach().double() * inverse).sum())
        direction = inverse * lowest / constant if constant else inverse * math.inf
        # rounding of y and of the row is what keeps the logit from being constant; sqrt(H) for errors of either sign
        noise = torch.finfo(head.dtype).eps * float(direction.norm() * norm.weight.detach().double().abs().mean())
        if not noise < abs(lowest) / 10:
            raise ValueError(
                f"`guard`='layer_norm': sum(bias / weight) of this base's last {type(norm).__name__} is "
                f"{constant:.3g}, too close to 0 for a row of constant logit in {head.dtype}. Use "
                "`guard='suppress_tokens'`, which exports for transformers alone."
            )
        head[rows] = direction.to(head)
