"""Time of a training step: operations against a device's peak, and for sampling, bytes against its bandwidth.

    forward   = 2 * (weights of the layers' products) + 4 * length * heads * head_dim * layers   per token
              + 2 * H * V                                                                        per scored token
                and those of the vision tower (`vision_tower.py`), once a row
    training  = 3 forwards; 4 with gradient checkpointing, and 4 for TRL's fused LM head in any case
    sampling  = per token of the longest completion, the larger of
                bytes moved / (bandwidth * BANDWIDTH_UTILISATION) and forward / (peak * COMPUTE_UTILISATION)

Attention is counted in full, without the causal half. Communication, tokenisation, rewards and the launch of kernels
are not counted, and every row is taken to be as long as the arguments allow.
"""

from dataclasses import dataclass

from estimates.base_facts import count_parts
from estimates.traced_memory import cache_bytes, text_config
from estimates.training_setup import TrainingSetup
from estimates.vision_tower import tower_flops
from transformers import PreTrainedConfig

# Assumptions, not measurements: 38 to 43% of the peak is what Llama 3's pre-training reports (arXiv 2407.21783, table
# 4).
COMPUTE_UTILISATION = 0.4
BANDWIDTH_UTILISATION = 0.6
# Bytes moved per parameter and decoding step. transformers under autocast reads float32 weights, writes bfloat16
# copies and reads these; vLLM reads bfloat16 weights.
TRANSFORMERS_WEIGHT_BYTES, VLLM_WEIGHT_BYTES = 4 + 2 + 2, 2
# Times that the cache is moved per decoding step. transformers appends by copying (read and write), and attention
# reads.
TRANSFORMERS_CACHE_PASSES, VLLM_CACHE_PASSES = 3, 1


@dataclass
class Hardware:
    """A device by its data sheet: dense bfloat16 operations per second, bytes per second, and GiB of memory."""

    name: str
    peak: float
    bandwidth: float
    memory: float


HARDWARE = {
    "h100": Hardware("H100 SXM 80 GB", 989e12, 3.35e12, 79.6),
    "a100": Hardware("A100 SXM 80 GB", 312e12, 2.04e12, 79.3),
}


def forward_flops(config: PreTrainedConfig, batch: int, length: int, scored_tokens: int) -> int:
    """Operations of one forward."""
    parts, text = count_parts(config), text_config(config)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 4 * length * text.num_attention_heads * head_dim * text.num_hidden_layers
    return batch * length * (2 * parts.linear + attention) + 2 * parts.head * scored_tokens


def training_flops(config: PreTrainedConfig, setup: TrainingSetup) -> int:
    """Operations of forward and backward of one batch."""
    body = forward_flops(config, setup.batch, setup.length, 0)
    head = forward_flops(config, setup.batch, setup.length, setup.scored_tokens) - body
    body += setup.batch * image_flops(config, setup)
    return body * (4 if setup.checkpointing else 3) + head * 4


def image_flops(config: PreTrainedConfig, setup: TrainingSetup) -> int:
    """Operations of the vision tower's forward over a row's image."""
    return tower_flops(config, setup.patches) if setup.patches else 0


def step_seconds(config: PreTrainedConfig, setup: TrainingSetup, hardware: Hardware) -> dict[str, float]:
    """
    Seconds of an optimizer step.

    Returns:
        `dict[str, float]`: `training`, `sampling` (0 where other devices sample), and `step`, their sum.

    Raises:
        ValueError: Without mixed precision: the peaks are bfloat16's.
    """
    if not setup.bf16:
        raise ValueError("`bf16` is off, and the peaks of `HARDWARE` are bfloat16's. Set `bf16: true`.")
    compute = hardware.peak * COMPUTE_UTILISATION
    training = training_flops(config, setup) * setup.accumulation / compute
    image = image_flops(config, setup)
    scoring = forward_flops(config, setup.batch, setup.length, setup.scored_tokens) + setup.batch * image
    scoring *= setup.accumulation / compute
    training += setup.scoring_forwards * scoring
    sampling = 0.0
    if setup.rollouts:
        vllm = setup.vllm_share > 0
        rounds = setup.batch * setup.accumulation / setup.rollouts
        completion = setup.length - setup.prompt_length
        weights = count_parts(config).trained * (VLLM_WEIGHT_BYTES if vllm else TRANSFORMERS_WEIGHT_BYTES)
        at_start, at_end = (
            cache_bytes(config, setup.rollouts, length, setup.bf16) for length in (setup.prompt_length, setup.length)
        )
        cache = (at_start + at_end) / 2 * (VLLM_CACHE_PASSES if vllm else TRANSFORMERS_CACHE_PASSES)
        moving = (weights + cache) / (hardware.bandwidth * BANDWIDTH_UTILISATION)
        token = forward_flops(config, 1, setup.length, setup.length) / setup.length
        computing = setup.rollouts * token / compute
        prefill = forward_flops(config, setup.rollouts, setup.prompt_length, setup.rollouts)
        prefill = (prefill + setup.rollouts * image) / compute
        sampling = rounds * (prefill + completion * max(moving, computing))
    return {"training": training, "sampling": sampling, "step": training + sampling}
