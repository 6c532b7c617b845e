"""Arguments of the VAE's training."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

# What a direction of the latent must explain to be used; a segment's share in the squared error is the smaller.
BETA, SEGMENTS_BETA = 0.02, 0.005
# Settings that depend on the decoder; None where it has no such setting.
DECODER_DEFAULTS: dict[str, dict[str, int | None]] = {
    "mlp": {"latent_dim": 64, "num_slots": None, "num_decoder_layers": None, "num_segments": None},
    "gpt": {"latent_dim": 1024, "num_slots": 8, "num_decoder_layers": 2, "num_segments": 8},
}


@dataclass
class PaletteVAEConfig(TrainingArguments):
    r"""
    Arguments of [`PaletteVAETrainer`]: those of `TrainingArguments`, with other defaults where noted, and these.

    Args:
        latent_dim (`int`, *optional*):
            Z, the size of a latent: 64 by default, or 1024, the paper's, with `decoder_type="gpt"`. More than is used
            does no harm: spare units stay inactive.
        hidden_sizes (`list[int]`, defaults to `[512]`):
            Widths of the encoder's hidden layers; the `"mlp"` decoder mirrors them.
        decoder_type (`str`, defaults to `"mlp"`):
            The decoder's architecture. `"mlp"` makes a row of each latent. `"gpt"` makes a whole prefix of one latent,
            with a small causal transformer over its slots, whose rows are trained to be the mean embeddings of
            successive parts of the trace.
        num_slots (`int`, *optional*):
            Slots of a latent with `decoder_type="gpt"`, and the most rows of a prefix; 8 by default. Must divide
            `latent_dim`.
        num_decoder_layers (`int`, *optional*):
            Layers of the transformer with `decoder_type="gpt"`; 2 by default.
        num_segments (`int`, *optional*):
            Parts of a trace that are pooled apart with `decoder_type="gpt"`: as many as slots by default, so that each
            row learns its part. With 1 the mean of all rows learns the mean of the whole trace, and most slots stay
            unused (figures: examples/benchmarks/slot_decoder.json; of what a model makes of the prefixes:
            slot_decoder_countdown.json).
        merge_images (`bool`, defaults to `False`):
            Pool traces with their images: what a vision-language base puts in place of its image placeholders counts
            as the text's tokens do, at the cost of a forward pass of the vision tower for each trace with images. By
            default the text alone counts. Needs `num_segments=1` with `decoder_type="gpt"`.
        beta (`float`, *optional*):
            Weight of the KL divergence (eq. 8): 0.02 by default, 0.005 for traces in several segments. The squared
            error is taken per standardised dimension and averaged over H (and segments), so it is the unexplained
            share of the variance and `beta` means the same for every base: a direction of the latent is used if it
            explains more than about `beta / 2` of the variance. (The weight for a squared error summed over H would be
            `beta * H`.) Raise it for a latent of fewer nats (figures: examples/benchmarks/vae_beta.json and
            slot_decoder.json).
        kl_warmup_ratio (`float`, defaults to 0.1):
            Fraction of the training steps over which the KL's weight rises linearly to `beta`, against posterior
            collapse.

    Raises:
        ValueError: If a value is out of range.
    """

    latent_dim: int | None = field(
        default=None, metadata={"help": "Z, the size of a latent. 64 by default, 1024 with decoder_type='gpt'."}
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [512],
        metadata={"help": "Widths of the encoder's hidden layers; the 'mlp' decoder mirrors them."},
    )
    decoder_type: str = field(
        default="mlp",
        metadata={"help": "'mlp': a row of each latent. 'gpt': a whole prefix of one latent."},
    )
    num_slots: int | None = field(
        default=None, metadata={"help": "Slots of a latent with decoder_type='gpt'. 8 by default."}
    )
    num_decoder_layers: int | None = field(
        default=None, metadata={"help": "Transformer layers with decoder_type='gpt'. 2 by default."}
    )
    num_segments: int | None = field(
        default=None,
        metadata={"help": "Parts of a trace that are pooled apart with decoder_type='gpt'. num_slots by default."},
    )
    merge_images: bool = field(
        default=False, metadata={"help": "Pool traces with their images, not by their text alone."}
    )
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the KL divergence against the unexplained share of the variance (eq. 8). 0.02 by "
            "default, 0.005 for several segments."
        },
    )
    kl_warmup_ratio: float = field(
        default=0.1, metadata={"help": "Fraction of the steps over which the KL's weight rises to beta."}
    )

    # Other defaults than in `TrainingArguments`.
    learning_rate: float = field(default=3e-3, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    num_train_epochs: float = field(default=20.0, metadata={"help": "Number of passes over the traces."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Traces per device and step."})
    per_device_eval_batch_size: int = field(default=1024, metadata={"help": "Traces per device and evaluation step."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    hub_strategy: str = field(
        default="end", metadata={"help": "When to upload: a palette is uploaded when it is done."}
    )
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Whether to pin memory: not worth it for a few hundred floats a trace."}
    )
    batch_eval_metrics: bool = field(
        default=True, metadata={"help": "Gather metrics batch by batch; the trainer does nothing else."}
    )

    def __post_init__(self) -> None:
        if self.decoder_type not in DECODER_DEFAULTS:
            raise ValueError(f"`decoder_type` must be one of {tuple(DECODER_DEFAULTS)}, got {self.decoder_type!r}.")
        for name, default in DECODER_DEFAULTS[self.decoder_type].items():
            value = getattr(self, name)
            if default is None and value is not None:
                raise ValueError(
                    f"`{name}`={value!r} is for `decoder_type`='gpt', got {self.decoder_type!r}. Drop it."
                )
            if value is None:
                setattr(self, name, self.num_slots if name == "num_segments" else default)  # as many as slots
            elif not _is_size(value):
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        latent_dim, num_slots, num_segments = self.latent_dim or 1, self.num_slots or 1, self.num_segments or 1
        if num_slots % num_segments:
            raise ValueError(
                f"`num_slots`={num_slots} cannot be shared out among `num_segments`={num_segments}. Give a "
                "divisor, such as the number of slots, or 1."
            )
        if self.merge_images and num_segments > 1:
            raise ValueError(
                f"`merge_images`=True takes whole traces, but `num_segments`={num_segments} cuts their text. Set "
                "num_segments=1, or leave merge_images out."
            )
        if latent_dim % num_slots:
            raise ValueError(
                f"`latent_dim`={latent_dim} cannot be cut into `num_slots`={num_slots} slots of one width. "
                "Give a multiple."
            )
        if not isinstance(self.hidden_sizes, (list, tuple)) or not all(map(_is_size, self.hidden_sizes)):
            raise ValueError(f"`hidden_sizes` must be a list of positive integers, got {self.hidden_sizes!r}.")
        if self.beta is None:
            self.beta = BETA if num_segments == 1 else SEGMENTS_BETA
        if not self.beta >= 0 or math.isinf(self.beta):
            raise ValueError(f"`beta` must be a number of at least 0, got {self.beta!r}.")
        if not 0 <= self.kl_warmup_ratio <= 1:
            raise ValueError(f"`kl_warmup_ratio` must be between 0 and 1, got {self.kl_warmup_ratio!r}.")
        if not self.batch_eval_metrics:
            raise ValueError(
                "`batch_eval_metrics` must be True: the VAE's metrics are sums over batches. Leave it out."
            )
        if self.hub_strategy != "end":
            raise ValueError(
                f"`hub_strategy` must be 'end', got {self.hub_strategy!r}: checkpoints of a training are no palettes."
            )
        super().__post_init__()


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
