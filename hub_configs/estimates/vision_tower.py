"""Operations and memory of a vision tower of Qwen-VL's kind: blocks over patches, and mergers of patches into tokens.

As for decoder layers, what autograd keeps is not a formula: a tower of the real widths and few blocks runs on two
small images, for real because the sizes of images are data to it, and what a further block and a further patch add is
counted. Attention keeps what grows with the patches alone, so that this holds for larger images too.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from estimates.base_facts import empty_model, once_per_config
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights


@dataclass
class ImageSize:
    """The largest image that a processor makes."""

    tokens: int
    patches: int


@dataclass
class TowerParameters:
    """Numbers of parameters of a tower."""

    total: int
    blocks: int
    """Those of its blocks together."""
    widest: int
    """The widest output of a product in a block."""
    linear: float
    """Weights of the products that a patch goes through; those of mergers are shared by the patches of a token."""


@dataclass
class TowerMemory:
    """Bytes of a patch."""

    saved: float
    """What autograd keeps of it in one block."""
    checkpoint: float
    """What is kept of it in one block under gradient checkpointing: the block's input."""
    outside: float
    """What autograd keeps of it outside of the blocks: by the embedding of patches and by mergers."""


def largest_image(config: PreTrainedConfig, max_pixels: int) -> ImageSize:
    """Of an image of so many pixels."""
    vision = config.vision_config
    patches_per_token = vision.spatial_merge_size**2
    tokens = max_pixels // (vision.patch_size**2 * patches_per_token)
    return ImageSize(tokens, tokens * patches_per_token)


def pixel_bytes(config: PreTrainedConfig) -> int:
    """Bytes of a patch as the processor hands it over, in float32."""
    vision = config.vision_config
    return 4 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


@once_per_config
def count_tower(config: PreTrainedConfig) -> TowerParameters:
    """The parameters of a config's vision tower."""
    with torch.device("meta"):
        tower: Any = empty_model(config).base_model.visual
    blocks = {id(module) for module in tower.blocks.modules() if isinstance(module, nn.Linear)}
    linear = float(tower.patch_embed.proj.weight.numel())
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            share = 1 if id(module) in blocks else config.vision_config.spatial_merge_size**2
            linear += module.weight.numel() / share
    return TowerParameters(
        total=sum(parameter.numel() for parameter in tower.parameters()),
        blocks=sum(parameter.numel() for parameter in tower.blocks.parameters()),
        widest=max(module.out_features for module in tower.blocks.modules() if isinstance(module, nn.Linear)),
        linear=linear,
    )


def tower_flops(config: PreTrainedConfig, patches: int) -> int:
    """Operations of a forward over one image."""
    vision = config.vision_config
    lengths = [patches] * vision.depth
    if getattr(vision, "window_size", None):  # all but a few blocks of Qwen2.5-VL attend within windows
        window = min(patches, (vision.window_size // vision.patch_size) ** 2)
        lengths = [patches if block in vision.fullatt_block_indexes else window for block in range(vision.depth)]
    return round(patches * (2 * count_tower(config).linear + 4 * vision.hidden_size * sum(lengths)))


@once_per_config
def tower_memory(config: PreTrainedConfig, bf16: bool) -> TowerMemory:
    """What training keeps of each patch, with float32 weights."""
    few, more = 64, 128  # patches: a square and a pair of squares of Qwen2.5-VL's windows
    mergers = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    depth = max(2, mergers)
    per_patch, inputs = [], 0
    for blocks in (depth, depth + 1):
        tower = _small_tower(config, blocks)
        (kept_of_few, inputs), (kept_of_more, _) = (
            _saved_for_backward(tower, patches, pixel_bytes(config) // 4, bf16) for patches in (few, more)
        )
        per_patch.append((kept_of_more - kept_of_few) / (more - few))
    saved = per_patch[1] - per_patch[0]
    return TowerMemory(saved, inputs / few, per_patch[0] - depth * saved)


def _small_tower(config: PreTrainedConfig, blocks: int) -> Any:
    """A tower of the real widths and so many blocks, with as many mergers."""
    with torch.device("meta"):
        tower_class: Any = type(empty_model(config).base_model.visual)
    vision = copy.deepcopy(config.vision_config)
    vision.depth = blocks
    if getattr(vision, "deepstack_visual_indexes", None):
        vision.deepstack_visual_indexes = list(range(len(vision.deepstack_visual_indexes)))
    with no_init_weights():
        return tower_class._from_config(vision).train()


def _saved_for_backward(tower: Any, patches: int, values: int, bf16: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of an image of so many patches of so many values, and bytes of a block's input."""
    parameters = {parameter.untyped_storage()._cdata for parameter in tower.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}
    inputs: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage  # kept, so that the address is not used again
        return tensor

    handle = tower.blocks[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0].nbytes))
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        tower(torch.zeros(patches, values), torch.tensor([[1, 8, patches // 8]]))
    handle.remove()
    return sum(storage.nbytes() for storage in saved.values()), inputs[0]
