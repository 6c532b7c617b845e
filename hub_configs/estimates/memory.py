"""Memory of a training step per device, part by part.

Bytes per parameter on one device, with AdamW: 4 (weights) + 4 (gradients) + 8 (optimizer); TRL loads in float32 and
`bf16` is mixed precision. Parts that live at different moments are not added up: see `training_memory`. What is left
out: the device's context, the allocator's fragmentation, and collectives' own buffers.
"""

from estimates.base_facts import Parameters, count_parts
from estimates.traced_memory import cache_bytes, layer_memory, text_config
from estimates.training_setup import TrainingSetup
from estimates.vision_tower import count_tower, pixel_bytes, tower_memory
from transformers import PreTrainedConfig

GIB = 2**30
# TRL's fused LM head projects tiles of this many tokens by this many rows of the vocabulary
# (trl/kernels/chunked_logprob.py, trl/trainer/utils.py; the tests compare).
HEAD_TOKENS, HEAD_ROWS = 4096, 32768
# DeepSpeed's defaults: parameters gathered at a time, and gradients reduced at a time.
ZERO3_LIVE_PARAMETERS, ZERO3_REDUCE_BUCKET = 10**9, 5 * 10**8
# Bytes that sampling takes of each logit: the model's own (2), generate's float32 copy, sorted or filtered, and
# softmax.
SAMPLING_BYTES = 2 + 4 + 4 + 4


def training_memory(
    config: PreTrainedConfig, setup: TrainingSetup, palette_bytes: int = 0, device_gib: float = 80.0
) -> dict[str, float]:
    """
    GiB per device of the parts, and of the two peaks. `device_gib`, the device's own memory, is what a colocated vLLM
    reserves its share of.

    Returns:
        `dict[str, float]`: `weights`, `gradients`, `optimizer`, `buffers` (of the strategy), `reference`, `palette`,
        `images` (their pixels), `activations`, `transient` (the largest of what exists only for a moment), `cache`,
        `sampling`, `vllm`; `training` and `rollouts`, the peaks of the two phases; and `peak`, the larger of them.
    """
    parts = count_parts(config)
    gib: dict[str, float] = {}
    shards = setup.devices if setup.strategy in ("fsdp2", "deepspeed_zero3") else 1
    trained = _trained(parts, setup)
    gib["weights"] = 4 * parts.total / shards
    gib["gradients"] = 4 * trained / shards
    gib["optimizer"] = 8 * trained / shards
    if setup.strategy == "deepspeed_zero3":  # bfloat16 weights and gradients beside float32 ones for the optimizer
        gib["weights"], gib["gradients"] = 2 * parts.total / shards, 2 * trained / shards
        gib["optimizer"] = 12 * trained / shards
    gib["reference"] = gib["weights"] if setup.reference else 0
    gib["palette"] = palette_bytes
    tower_blocks = count_tower(config).blocks if setup.patches else 0
    gib["buffers"] = _gathered_bytes(parts, tower_blocks, setup)
    # All that a generation samples stays at hand while it is trained on.
    gib["images"] = max(setup.batch, setup.rollouts) * setup.patches * pixel_bytes(config) if setup.patches else 0

    saved = layer_memory(config, setup.batch, setup.length, setup.bf16)
    compute_bytes = 2 if setup.bf16 else 4
    copies = _weight_copies(parts, setup)
    tower_kept, tower_copies, tower_backward = _tower_bytes(config, setup)
    # Sharding strategies gather weights in bfloat16, which `buffers` counts: there are no copies beside them.
    layer = saved.saved - (2 * parts.layer if setup.bf16 and not copies else 0)
    gib["activations"] = saved.layers * (saved.checkpoint if setup.checkpointing else layer) + tower_kept
    hidden, vocabulary = text_config(config).hidden_size, text_config(config).vocab_size
    tile = compute_bytes * min(setup.scored_tokens, HEAD_TOKENS) * HEAD_ROWS
    # Without checkpointing, what is saved counts the copies.
    forward_end = tile + (copies + tower_copies if setup.checkpointing else 0)
    head_backward = tile + 4 * hidden * (setup.scored_tokens + vocabulary) + compute_bytes * HEAD_ROWS * hidden
    layer_backward = max(layer, tower_backward) if setup.checkpointing else 0
    gib["transient"] = max(forward_end, head_backward, layer_backward)

    gib["vllm"] = setup.vllm_share * device_gib * GIB
    gib["cache"] = gib["sampling"] = 0
    if setup.vllm_share == 0 and setup.rollouts:
        gib["cache"] = cache_bytes(config, setup.rollouts, setup.length, setup.bf16)
        prefill = setup.rollouts * setup.prompt_length * (8 * hidden + 2 * compute_bytes * parts.widest)
        if setup.patches:
            tower_width = 8 * config.vision_config.hidden_size + 2 * compute_bytes * count_tower(config).widest
            prefill = max(prefill, setup.rollouts * setup.patches * tower_width)
        gib["sampling"] = max(SAMPLING_BYTES * setup.rollouts * vocabulary, prefill) + copies
        if setup.strategy == "deepspeed_zero3":  # TRL gathers all weights for generation
            gib["sampling"] += 2 * parts.total
    gib = {name: size / GIB for name, size in gib.items()}

    held = gib["weights"] + gib["optimizer"] + gib["reference"] + gib["palette"] + gib["vllm"] + gib["images"]
    gib["training"] = held + gib["gradients"] + gib["buffers"] + gib["activations"] + gib["transient"]
    gib["rollouts"] = held + gib["cache"] + gib["sampling"] if setup.rollouts else 0
    gib["peak"] = max(gib["training"], gib["rollouts"])
    return gib


def _weight_copies(parts: Parameters, setup: TrainingSetup) -> int:
    """The bfloat16 copies of weights that autocast keeps until the end of a forward. FSDP2 and DeepSpeed cast
    themselves, what they gather."""
    return 2 * parts.layers_total if setup.bf16 and setup.strategy in ("single", "ddp") else 0


def _trained(parts: Parameters, setup: TrainingSetup) -> int:
    """Parameters with a gradient: images give one to their tower, text does not."""
    return parts.total if setup.patches else parts.trained


def _tower_bytes(config: PreTrainedConfig, setup: TrainingSetup) -> tuple[int, int, int]:
    """What a vision tower keeps for the backward, autocast's copies of its weights, and what a block takes in its
    backward under gradient checkpointing. The mergers are not checkpointed."""
    if not setup.patches:
        return 0, 0, 0
    patch, facts = tower_memory(config, setup.bf16), count_tower(config)
    patches, depth = setup.batch * setup.patches, config.vision_config.depth
    copies = 2 * facts.total if setup.bf16 and setup.strategy in ("single", "ddp") else 0
    in_blocks = depth * (patch.checkpoint if setup.checkpointing else patch.saved)
    kept = round(patches * (in_blocks + patch.outside)) + (0 if setup.checkpointing else copies)
    return kept, copies, round(patches * patch.saved)


def _gathered_bytes(parts: Parameters, tower_blocks: int, setup: TrainingSetup) -> int:
    """Bytes that a strategy keeps beside the model."""
    width, trained = 2 if setup.bf16 else 4, _trained(parts, setup)
    if setup.strategy == "ddp":  # gradients once more, in buckets (`gradient_as_bucket_view` is off)
        return 4 * trained
    if setup.strategy == "fsdp2":
        # Two layers' weights (this one and the next), one layer's gradients, and both of what is outside of layers
        # and of blocks of a tower, which are smaller.
        return width * (3 * parts.layer + 2 * (parts.total - parts.layers_total - tower_blocks))
    if setup.strategy == "deepspeed_zero3":
        return width * (min(parts.total, ZERO3_LIVE_PARAMETERS) + min(trained, ZERO3_REDUCE_BUCKET))
    return 0
