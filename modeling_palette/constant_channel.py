"""A constant channel in the residual stream of a base with RMSNorms: what the head's rows of strategies read.

The base becomes some channels wider. One of them holds a small constant in every embedding row, which no layer reads
or changes, so the last norm receives it whatever the tokens are. The weights of the norms make up for the larger
width, and their epsilon for the constant: the function stays the base's.
"""

import copy
import math
from typing import Any

import torch

from .stock_base import embedding_scale, empty_base, padded

EPSILON_FIELDS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
# The square of the constant channel, as a share of what the norm's epsilon adds to the sum of squares.
CHANNEL_SHARE = 0.01


def widened(
    model: Any, config: Any, tensors: dict[str, torch.Tensor], final_norm: str, multiplier: float
) -> dict[str, torch.Tensor]:
    """
    The base's tensors with a constant channel: those of a model with a larger `hidden_size`, which is set in `config`.

    Args:
        model ([`PaletteForCausalLM`]): The palette model.
        config (`PreTrainedConfig`): The export's config, changed in place.
        tensors (`dict[str, torch.Tensor]`): The base's tensors.
        final_norm (`str`): Name of the last norm.
        multiplier (`float`): What the first layer receives in units of the embedding's output.

    Returns:
        `dict[str, torch.Tensor]`: The tensors of the wider model.

    Raises:
        ValueError: if the family's other sizes follow its width, or its norms are not RMSNorms.
    """
    family = type(model).base_class.__name__
    way_out = "Use `guard='suppress_tokens'`, which exports for transformers alone."
    text_config = config.get_text_config()
    width: Any = getattr(text_config, "hidden_size", None)
    epsilon_field = next((name for name in EPSILON_FIELDS if getattr(text_config, name, None)), None)
    # sizes that vary across layers (Gemma 4) cannot be read, or set, for all at once
    is_uniform = width is not None and not getattr(text_config, "is_heterogeneous", False)
    if not is_uniform or epsilon_field is None or not math.isfinite(multiplier) or multiplier <= 0:
        raise ValueError(
            f"`guard`='channel' is not known to be right for {family}: its layers differ in size, do not receive the "
            f"embedding's output times one positive number, or have norms without an epsilon in the config. {way_out}"
        )
    heads = getattr(text_config, "num_attention_heads", None)
    if heads and getattr(text_config, "head_dim", None) is None:
        text_config.head_dim = width // heads
    unit = min(64, width & -width)  # kernels like multiples
    if heads and width % heads == 0:  # some configs ask for that
        unit = math.lcm(unit, heads)
    wider = text_config.hidden_size = width + unit
    skeleton = empty_base(model, config)
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    for name, tensor in tensors.items():
        for old, new in zip(tensor.shape, shapes[name], strict=True):
            if old != new and (old, new) != (width, wider):
                raise ValueError(
                    f"`guard`='channel': `{name}` of {family} has shape {tuple(tensor.shape)}, and would have "
                    f"{tuple(shapes[name])} in a wider model: its sizes follow `hidden_size`. {way_out}"
                )
    epsilon = getattr(text_config, epsilon_field)
    constant = math.sqrt(CHANNEL_SHARE * epsilon * width)
    # sum(x^2) / H + eps, times H / H', is what the wider norm must divide by
    setattr(text_config, epsilon_field, (epsilon * width - constant**2) / wider)
    scale = math.sqrt(width / wider)
    result = {name: padded(tensor, shapes[name]) for name, tensor in tensors.items()}
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if weight not in shapes or tensors[weight].dim() != 1 or shapes[weight] == tensors[weight].shape:
            continue
        offset = _rms_norm_offset(module, f"`{name}` of {family}", way_out)
        values = (tensors[weight].double() + offset) * scale
        values = torch.cat([values, values.new_zeros(wider - width)])
        if name == final_norm:
            # float16 holds no large weight for the head: here it is made up for, and a logit may be minus infinity
            values[width] = 3e4 if tensors[weight].dtype == torch.float16 else 1 / constant
        result[weight] = (values - offset).to(tensors[weight])
    name = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    rows = result[f"{name}.weight"]
    scale = embedding_scale(model.get_input_embeddings())
    wider_scale = _scale_of(skeleton.get_input_embeddings(), rows.dtype)
    if wider_scale is not None and wider_scale != scale:  # Gemma's is the square root of the width
        rows = (rows.double() * (scale / wider_scale)).to(rows)
        scale = wider_scale
    elif rows is tensors[f"{name}.weight"]:  # a narrow embedding in front of a projection (OPT)
        raise ValueError(f"`guard`='channel': the embedding of {family} is narrower than its layers. {way_out}")
    rows[:, width] = constant / multiplier / scale
    result[f"{name}.weight"] = rows
    return result


def _scale_of(embedding: Any, dtype: torch.dtype) -> float | None:
    """The scale that an embedding without weights will have in `dtype`, or `None` where it has none."""
    scale = getattr(embedding, "scalar_embed_scale", None)
    return None if scale is None else float(torch.tensor(float(scale)).to(dtype))


def _rms_norm_offset(norm: Any, name: str, way_out: str) -> float:
    """0 for an RMSNorm that multiplies by its weight, 1 for one that multiplies by 1 + weight (Gemma)."""
    trial = copy.deepcopy(norm).float()
    epsilon = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)) or 0.0)
    values = torch.randn(1, 2, norm.weight.shape[0], generator=torch.Generator().manual_seed(0)).to(trial.weight)
    with torch.no_grad():
        output = trial(values)
        normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
        for offset in (0.0, 1.0):
            if torch.allclose(output, normed * (trial.weight + offset), rtol=1e-3, atol=1e-4):
                return offset
    raise ValueError(f"`guard`='channel': {name} ({type(norm).__name__}) is not an RMSNorm. {way_out}")
