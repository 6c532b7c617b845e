"""What a training's arguments say about memory and time, in numbers of rows and tokens."""

from dataclasses import dataclass
from typing import Any

from estimates.vision_tower import ImageSize

# As the configs in `accelerate/` are called; one device needs none of them.
STRATEGIES = ("single", "ddp", "fsdp2", "deepspeed_zero3")


@dataclass
class TrainingSetup:
    """
    One device's share of a training.

    Args:
        batch (`int`): Rows of a forward.
        length (`int`): Tokens of a row, prefix included; every row is taken to be as long as the arguments allow.
        accumulation (`int`): Forwards of an optimizer step.
        steps (`int`): Optimizer steps.
        bf16 (`bool`): Mixed precision: float32 weights, bfloat16 products.
        checkpointing (`bool`): Gradient checkpointing.
        devices (`int`), strategy (`str`): Number of devices, and how they share the work.
        rollouts (`int`, *optional*): Completions sampled at a time. 0: no rollouts.
        prompt_length (`int`, *optional*): Tokens of a prompt, prefix included, of trainings with rollouts.
        reference (`bool`, *optional*): Whether a reference model is held.
        scoring_forwards (`int`, *optional*): Forwards without a backward of each batch: the reference model's, and the
            policy's own that TRL corrects for vLLM's log-probabilities with.
        vllm_share (`float`, *optional*): Share of a device that a colocated vLLM reserves. 0: transformers samples.
        patches (`int`, *optional*): Patches that the vision tower reads of a row's image. 0: there are no images.
    """

    batch: int
    length: int
    accumulation: int
    steps: int
    bf16: bool
    checkpointing: bool
    devices: int
    strategy: str
    rollouts: int = 0
    prompt_length: int = 0
    reference: bool = False
    scoring_forwards: int = 0
    vllm_share: float = 0.0
    patches: int = 0

    @property
    def scored_tokens(self) -> int:
        """Tokens of a forward that go through the LM head."""
        return self.batch * (self.length - self.prompt_length)


def setup_of(
    args: Any, prompt_length: int, devices: int = 1, strategy: str = "single", image: ImageSize | None = None
) -> TrainingSetup:
    """
    The setup of SFT, GRPO or RLOO arguments. The global batch stays what it is on one device: accumulation steps are
    divided by the number of devices. Every prompt has an `image`, if there is one: its tokens come on top of
    `prompt_length`, and are within `max_length`.

    Raises:
        ValueError: For what the estimates know nothing of.
    """
    if strategy not in STRATEGIES or (strategy == "single") != (devices == 1):
        raise ValueError(
            f"`strategy` must be 'single' for one device and one of {STRATEGIES[1:]} for several, got {strategy!r} "
            f"for {devices}."
        )
    if args.gradient_accumulation_steps % devices:
        raise ValueError(
            f"`gradient_accumulation_steps` is {args.gradient_accumulation_steps}, which {devices} devices cannot "
            "share. Use a multiple of their number."
        )
    if not str(getattr(args.optim, "value", args.optim)).startswith("adamw_torch"):
        raise ValueError(f"`optim` is {args.optim}; the estimates know PyTorch's AdamW ('adamw_torch_fused') only.")
    if args.max_steps <= 0:
        raise ValueError("`max_steps` must be set: how many steps an epoch has depends on the data.")
    if args.fp16:
        raise ValueError("`fp16` is set; the estimates know float32 and `bf16` only.")
    accumulation = args.gradient_accumulation_steps // devices
    setup = TrainingSetup(
        batch=args.per_device_train_batch_size,
        length=0,
        accumulation=accumulation,
        steps=args.max_steps,
        bf16=args.bf16,
        checkpointing=args.gradient_checkpointing,
        devices=devices,
        strategy=strategy,
        patches=image.patches if image else 0,
    )
    if not hasattr(args, "num_generations"):
        if args.max_length is None:
            raise ValueError("`max_length` is None; the estimates need the longest row.")
        if image and args.max_length < image.tokens:
            raise ValueError(
                f"`max_length` is {args.max_length}, but an image takes up to {image.tokens} tokens. Raise it, or "
                "lower `max_pixels` of vae.yaml."
            )
        setup.length = args.max_length + args.num_prefix_tokens
        return setup
    setup.prompt_length = prompt_length + (image.tokens if image else 0) + args.num_prefix_tokens
    setup.length = setup.prompt_length + args.max_completion_length
    setup.rollouts = setup.batch * min(args.steps_per_generation, accumulation)
    setup.reference = args.beta > 0
    setup.scoring_forwards = setup.reference + args.use_vllm
    if args.use_vllm and args.vllm_mode == "colocate":
        setup.vllm_share = args.vllm_gpu_memory_utilization
    elif args.use_vllm:
        setup.rollouts = 0
    return setup
