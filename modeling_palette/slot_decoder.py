"""The `"gpt"` decoder's body: one latent, cut into slots, through a small causal transformer (METHOD 7).

The paper reshapes z in R^1024 to 8 slots of 128 numbers and lets a small GPT-style decoder make 8 prefix embeddings of
them; what it looks like inside is not published. This one is GPT-2's (pre-norm blocks, learnt positions, a final norm)
at the width of a slot, so that the slots themselves are its input embeddings. Row p depends on slots 0 to p alone: the
first rows of a prefix do not change with its length.

Shapes: S slots, W = Z / S their width.
"""

import torch
from torch import nn
from transformers import initialization as init

from .buffer_layers import GELU_SECOND_MOMENT, BufferLayerNorm, BufferLinear

# Width of an attention head; a slot that is no multiple of it gets one head.
HEAD_SIZE = 32
# As in GPT-2: the blocks' hidden layer is four times as wide, positions start small.
EXPANSION = 4
INITIAL_POSITION_STD = 0.02


class SlotBlock(nn.Module):
    """A pre-norm transformer block with causal attention over the slots.

    Args:
        width (`int`): W.
        num_residuals (`int`): Residual branches of the whole stack. Each starts at a variance of 1 over it, as in
            GPT-2, so that depth does not change the scale.
    """

    def __init__(self, width: int, num_residuals: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_SIZE if width % HEAD_SIZE == 0 else 1
        self.attention_norm = BufferLayerNorm(width)
        self.qkv = BufferLinear(width, 3 * width)
        self.attention_out = BufferLinear(width, width, num_residuals)
        self.mlp_norm = BufferLayerNorm(width)
        self.mlp_in = BufferLinear(width, EXPANSION * width)
        self.mlp_out = BufferLinear(EXPANSION * width, width, GELU_SECOND_MOMENT * num_residuals)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, S, W) -> (N, S, W)."""
        heads = self.qkv(self.attention_norm(hidden)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(dim=2)  # each (N, heads, S, size of a head)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp_out(nn.functional.gelu(self.mlp_in(self.mlp_norm(hidden))))


class SlotTransformer(nn.Module):
    """Latents (..., Z) to one hidden state for each slot (..., S, W).

    Args:
        latent_dim (`int`): Z, a multiple of S.
        num_slots (`int`): S.
        num_layers (`int`): Transformer blocks.
    """

    def __init__(self, latent_dim: int, num_slots: int, num_layers: int) -> None:
        super().__init__()
        width = latent_dim // num_slots
        self.positions: torch.Tensor
        self.register_buffer("positions", torch.empty(num_slots, width, dtype=torch.float32))
        self.blocks = nn.ModuleList(SlotBlock(width, 2 * num_layers) for _ in range(num_layers))
        self.final_norm = BufferLayerNorm(width)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """First values of the positions, for transformers' `_init_weights` too."""
        init.normal_(self.positions, std=INITIAL_POSITION_STD)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = latents.reshape(-1, *self.positions.shape) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.final_norm(hidden).reshape(*latents.shape[:-1], *self.positions.shape)
