"""The SFT warm-up: responses learned under latent prefixes (eq. 11 of arXiv 2512.17206)."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from .adapter_defaults import fitted_peft_config
from .image_prompts import check_messages, check_text, image_token_ids
from .latent_sensitivity import NUM_PROMPTS, prompt_of, prompt_with_images
from .palette_arguments import PaletteArguments
from .palette_trainer_mixin import (
    default_output_dir,
    default_processing_class,
    prepare_model,
)
from .prefix_insertion import Document, find_documents, insert_prefixes, longest_document
from .washout_monitor import WashoutMonitorMixin

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .converted_weights import needs_conversion as needs_conversion
    from .hub_pushes import HubPushMixin as HubPushMixin
    from .latent_draws import keyed_generator as keyed_generator
    from .latent_schedule import LatentSchedule as LatentSchedule
    from .message_images import MessageImages as MessageImages
    from .palette_model_card import hub_id as hub_id
    from .resume_mixin import ResumeMixin as ResumeMixin
    from .whole_checkpoints import checkpoint_step as checkpoint_step

WARM_UP_STEPS = 10  # "typically 10 iterations"


@dataclass
class PaletteSFTConfig(PaletteArguments, SFTConfig):
    r"""
    TRL's [`~trl.SFTConfig`] with the palette's arguments (see [`PaletteArguments`]), and the paper's warm-up as
    defaults.

    Parameters:
        num_prefix_tokens (`int`, *optional*, defaults to `1`):
            L, the number of prefix tokens. Prefixes come on top of `max_length`.
        latent_pairing (`str`, *optional*, defaults to `"prior"`):
            What an example is paired with. `"prior"`: a draw that knows nothing of the example (the paper's).
            `"posterior"`: a draw from the encoder's posterior of that example, so that the latent comes to mean what
            the examples near it have in common.
        latent_sensitivity_steps (`int`, *optional*, defaults to `1`):
            Least number of steps between two measurements of `latent/sensitivity`, which are made at logging steps.
            0 turns them off.
        max_steps (`int`, *optional*):
            Ten, the paper's, unless `max_steps` or `num_train_epochs` is given: too much training with prior draws
            teaches a model to ignore the prefix.
        num_train_epochs (`float`, *optional*):
            Epochs to train for, in place of `max_steps`.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "latent_domain"]  # noqa: RUF012

    num_prefix_tokens: int = field(
        default=1,
        metadata={"help": "L, the number of prefix tokens. 0 trains exactly as the stock trainer does."},
    )
    latent_pairing: str = field(
        default="prior",
        metadata={
            "help": "Whether an example is paired with a prior draw (the paper's) or a draw from its own posterior.",
            "choices": ["prior", "posterior"],
        },
    )
    latent_sensitivity_steps: int = field(
        default=1,
        metadata={"help": "Least number of steps between two measurements of `latent/sensitivity`. 0: never."},
    )
    max_steps: int = field(
        default=-1,
        metadata={"help": "Optimizer steps. Ten, the paper's, unless this or `num_train_epochs` is given."},
    )
    num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs to train for. If neither this nor `max_steps` is given, training takes ten steps."},
    )

    def __post_init__(self) -> None:
        if self.latent_pairing not in ("prior", "posterior"):
            raise ValueError(f"`latent_pairing` must be 'prior' or 'posterior', got {self.latent_pairing!r}.")
        if self.latent_pairing == "posterior" and self.latent_domain is not None:
            raise ValueError(
                f"`latent_domain` is {self.latent_domain!r}, but `latent_pairing='posterior'` takes every latent from "
                "its own example. Leave `latent_domain` unset, or use `latent_pairing='prior'`."
            )
        if self.num_train_epochs is None:
            if self.max_steps <= 0:
                self.max_steps = WARM_UP_STEPS
            self.num_train_epochs = 3.0  # transformers' default, which `max_steps` overrides
        super().__post_init__()


class PaletteSFTTrainer(WashoutMonitorMixin, SFTTrainer):
    r"""
    Supervised fine-tuning under latent prefixes (Reasoning Palette, arXiv 2512.17206).

    Every document of a batch gets a prefix of L latent tokens in front: it is attended to, carries no loss, and is
    drawn anew each time. The loss is over the same tokens as without a prefix. Packed and padding-free rows get a
    prefix per document.

    What changes with respect to [`~trl.SFTTrainer`]: `_prepare_inputs` (prefixes go in; not the collator, which runs
    ahead of the training step and in workers, where neither step nor mode is known), `compute_loss` (gives explicit
    latents back after the forward), `log` (the washout monitor), `create_model_card` (a section on the palette),
    `_save` (a palette is kept beside a LoRA adapter) and what [`ResumeMixin`] (a killed run goes on as if nothing had
    happened) and [`HubPushMixin`] (pushes of whole checkpoints) list. With `num_prefix_tokens=0` training is
    bit-identical to stock.

    **Posterior pairing** pools the input embeddings of the document's own tokens, special tokens left out, as the
    VAE's training did with the trace's text, and with the table as it is at that step. Truncation by `max_length`
    shortens what is pooled; of a chat template only the plain words (role names) are pooled with the text.

    **Washout monitor.** `latent/sensitivity` is logged before training and at every logging step (see
    [`WashoutMonitorMixin`]): how far, in nats, the first answer token depends on the latent, over 8 fixed prior (or
    `latent_domain`) draws and the first 8 training prompts. A warning says so when it falls below a quarter of its
    value before training.

    **Images.** With a vision-language model, the data may have images, in the columns `images` or `image` as TRL takes
    them; rows of text among them have an empty list in `images`. Images that messages name (paths, URLs, limits of
    their own) are put into a column before, by [`images_to_column`]. Give prompts and completions: with `messages`,
    TRL takes a loss on image tokens, too.

    **NEFTune** (`neftune_noise_alpha`) puts its noise on prefix rows as on any other row, not on what posteriors pool.

    Example:

    ```python
    trainer = PaletteSFTTrainer(
        model="my-org/qwen3-palette",
        args=PaletteSFTConfig(latent_pairing="posterior", num_prefix_tokens=4, max_steps=60),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            A palette model, the id or path of a palette checkpoint, or, with `palette`, any causal or
            vision-language model.
        args ([`PaletteSFTConfig`] or `TrainingArguments`, *optional*): Configuration.
        palette (`PaletteVAE` or `str`, *optional*): A palette, or the path or id of a palette checkpoint, for `model`.
        kwargs: Everything else that [`~trl.SFTTrainer`] takes. A `peft_config` is completed for the base (see
            [`fitted_peft_config`]).

    Raises:
        ValueError: If the model has no palette, if L or the domain does not fit it, or for settings that prefixes
            cannot work with (`packing_strategy="wrapped"`, `eval_packing` alone with `latent_eval`, adapters on the
            embedding, context parallelism).
    """

    _way_out_of_washout = (
        "Stop earlier (lower `max_steps`), lower `learning_rate`, or pair every example with its own posterior "
        "(`latent_pairing='posterior'`)."
    )
    _tag_names = ["trl", "sft", "reasoning-palette"]  # noqa: RUF012
    _name = "SFT with Reasoning Palette"
    config_class = PaletteSFTConfig

    def __init__(
        self,
        model: Any,
        args: PaletteSFTConfig | TrainingArguments | None = None,
        *,
        palette: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = PaletteSFTConfig(default_output_dir(model, "SFT"))
        elif isinstance(args, TrainingArguments) and not isinstance(args, SFTConfig):
            # As TRL does; `to_dict` hides the token
            args = PaletteSFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})
        model = prepare_model(model, palette, args, kwargs.get("quantization_config"))
        kwargs["peft_config"] = fitted_peft_config(kwargs.get("peft_config"), model, args)
        kwargs["processing_class"] = default_processing_class(model, kwargs.get("processing_class"))
        super().__init__(model, args, **kwargs)
        self._explicit_latents = contextlib.ExitStack()
        self.check_palette_setup()

    def check_palette_setup(self) -> None:
        super().check_palette_setup()
        args = self.args
        if args.num_prefix_tokens == 0:
            return
        packs_under_latents = args.packing or (args.eval_packing and args.latent_eval)
        if packs_under_latents and args.packing_strategy == "wrapped":
            raise ValueError(
                "`packing_strategy='wrapped'` cuts documents anywhere and does not keep their boundaries, so a prefix "
                "cannot be put in front of each. Use `packing_strategy='bfd'` or 'bfd_split'."
            )
        if packs_under_latents and not args.packing:
            raise ValueError(
                "`eval_packing=True` without `packing` makes TRL's collator run documents together as one row, which "
                "would get a single prefix. Set `packing=True`, `eval_packing=False` or `latent_eval=False`."
            )
        if args.latent_pairing == "posterior" and self.palette_model.config.merge_images:
            raise ValueError(
                "`latent_pairing='posterior'` encodes the text of each example, but this palette was trained with the "
                "traces' images (`merge_images`). Use `latent_pairing='prior'`, or a palette of text."
            )
        positions = self._num_positions()
        if positions is not None and (args.max_length is None or args.max_length > positions - args.num_prefix_tokens):
            self._check_positions(longest_document(self.train_dataset, positions))
        if self._is_vlm or args.latent_sensitivity_steps > 0:
            self._look_at_rows(list(itertools.islice(self.train_dataset, NUM_PROMPTS)))

    def _look_at_rows(self, rows: list[dict[str, Any]]) -> None:
        """The first rows of the dataset: refuses images that would be dropped, and sets the monitor's prompts."""
        image_tokens = image_token_ids(self.palette_model.config) if self._is_vlm else set()
        for row in rows if self._is_vlm else ():
            for name in ("prompt", "messages"):
                check_messages(row.get(name))
            if not self._is_vision_dataset:
                check_text(row.get("input_ids", ()), image_tokens)
        if self.args.latent_sensitivity_steps > 0:
            if self._is_vision_dataset:
                collated = [self.data_collator([dict(row)]) for row in rows]
                prompts = [prompt_with_images(batch, image_tokens) for batch in collated]
                self.monitor_washout([prompt for prompt, _ in prompts], [fields for _, fields in prompts])
            else:
                # Rows without tokens are for the user's own collator, which alone knows what becomes of them.
                self.monitor_washout([prompt_of(row) for row in rows if "input_ids" in row])

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if not self.uses_latents:
            return inputs
        self.log_initial_sensitivity()
        documents = find_documents(inputs)
        self._check_positions(max((document.length for document in documents), default=0))
        self._explicit_latents.close()
        return insert_prefixes(
            inputs,
            documents,
            self._latent_ids_of(inputs, documents),
            self.palette_model.insert_latent_ids,
            self._tokenizer.pad_token_id,
            self.args.pad_to_multiple_of,
        )

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            self._explicit_latents.close()

    def _document_numbers(self, mode: str, batch: dict[str, Any], documents: Sequence[Document]) -> list[int]:
        """
        Each document's number among those of the global step, on all processes: what its draw depends on. A padded
        batch has a document per row; how many a padding-free one has is known to its process alone.
        """
        if "attention_mask" in batch:
            per_device = self._train_batch_size if mode == "train" else self.args.eval_batch_size
            counts = [per_device] * self.accelerator.num_processes
            numbers = [document.row for document in documents]
        else:
            count = torch.tensor([len(documents)], device=batch["input_ids"].device)
            counts = self.accelerator.gather(count).tolist()
            numbers = list(range(len(documents)))
        first = self.take_draws(mode, sum(counts)) + sum(counts[: self.accelerator.process_index])
        return [first + number for number in numbers]

    def _latent_ids_of(self, batch: dict[str, Any], documents: Sequence[Document]) -> torch.Tensor:
        """Latent ids (N, L) of a batch's documents: codes of prior draws, or lent ids of posterior draws."""
        input_ids = batch["input_ids"]
        mode = "train" if self.model.training else "eval"
        # The zeros belong to the key: without them, recorded runs would draw otherwise.
        generators = [
            self.latent_generator(mode, 0, number, 0) for number in self._document_numbers(mode, batch, documents)
        ]
        model, length, tile = self.palette_model, self.args.num_prefix_tokens, self.args.latent_tile
        if not documents:
            return torch.zeros(0, length, dtype=torch.int64)
        if self.args.latent_pairing == "prior":
            codes = [model.draw_codes(1, self.args.latent_domain, generator=generator) for generator in generators]
            return model.latent_ids(torch.cat(codes), length, latent_tile=tile)

        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        special |= image_token_ids(model.config)
        tokens = [
            input_ids[document.row, document.start : document.start + document.length].tolist()
            for document in documents
        ]
        # A document of nothing but special tokens is pooled as it is: an empty trace has no mean.
        texts = [[token for token in row if token not in special] or row for row in tokens]
        embedding = model.get_input_embeddings()
        was_training = embedding.training
        embedding.eval()  # NEFTune's noise is for what the model reads
        pooled = model.pool_traces(texts)
        embedding.train(was_training)
        mean, logvar = model.palette.encode(pooled.to(input_ids.device))  # (N, Z)
        is_one = tile or model.palette.num_slots is not None  # one latent for the whole prefix
        num_draws, latent_dim = 1 if is_one else length, mean.shape[-1]
        noise = torch.stack([torch.randn(num_draws, latent_dim, generator=generator) for generator in generators])
        latents = model.palette.sample_posterior(mean[:, None], logvar[:, None], noise.to(mean))
        return self._explicit_latents.enter_context(model.explicit_latents(latents.expand(-1, length, -1)))

    def _num_positions(self) -> int | None:
        return getattr(self.palette_model.config.get_text_config(), "max_position_embeddings", None)

    def _check_positions(self, longest: int) -> None:
        positions = self._num_positions()
        if positions is not None and longest <= positions < longest + self.args.num_prefix_tokens:
            raise ValueError(
                f"A document of {longest} tokens and its prefix of {self.args.num_prefix_tokens} exceed the model's "
                f"{positions} positions. Set `max_length={positions - self.args.num_prefix_tokens}` or lower: "
                "prefixes come on top of it."
            )
