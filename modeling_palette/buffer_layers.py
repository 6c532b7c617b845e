"""Layers of float32 buffers, which nothing trains, adapts or quantises: what a palette is made of."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init

# E[gelu(x)^2] for x ~ N(0, 1). Weights of variance 1 / (fan_in * this) keep the scale of the activations at 1.
GELU_SECOND_MOMENT = 0.4252


class BufferLinear(nn.Module):
    """A linear layer of buffers.

    Args:
        in_features (`int`): Size of the input's last dimension.
        out_features (`int`): Size of the output's last dimension.
        input_second_moment (`float`, defaults to 1.0):
            Expected square of an input entry. Initial weights are scaled so that outputs have variance 1.
    """

    def __init__(self, in_features: int, out_features: int, input_second_moment: float = 1.0) -> None:
        super().__init__()
        self._initial_std = (in_features * input_second_moment) ** -0.5
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.float32))
        self.register_buffer("bias", torch.empty(out_features, dtype=torch.float32))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """First values, for transformers' `_init_weights` too: it passes by what a checkpoint has filled."""
        init.normal_(self.weight, std=self._initial_std)
        init.zeros_(self.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"


class BufferLayerNorm(nn.Module):
    """A layer norm over the last dimension, of buffers.

    Args:
        width (`int`): Size of the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.register_buffer("weight", torch.empty(width, dtype=torch.float32))
        self.register_buffer("bias", torch.empty(width, dtype=torch.float32))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """First values: the identity after the normalisation."""
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(inputs, self.weight.shape, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"width={self.weight.shape[0]}"


def buffer_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with GELU between them."""
    layers: list[nn.Module] = [BufferLinear(widths[0], widths[1])]
    for in_features, out_features in pairwise(widths[1:]):
        layers += [nn.GELU(), BufferLinear(in_features, out_features, GELU_SECOND_MOMENT)]
    return nn.Sequential(*layers)
