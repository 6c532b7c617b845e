"""`generate` with a latent prefix: insert the ids, let transformers decode as it does, take the ids out again."""

import copy
import inspect
import numbers
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

from .held_prefix import (
    PlacedPrefix,
    cache_of,
    held_prefix,
    hold_prefix,
    refuse_foreign_caches,
    refuse_new_ids_without_mask,
)
from .latent_naming import LatentNamingMixin
from .latent_prefix import Domain, cut, resolve_prefix, splice
from .ordinary_ids import (
    DRAFTS_ON_IDS,
    OrdinaryCriteriaList,
    OrdinaryIds,
    OrdinaryProcessorList,
    PrefixFreeStreamer,
    draft_on_ordinary_ids,
)
from .repeated_prompts import repeat_prompts

PALETTE_ARGUMENTS = ("latent", "domain", "num_prefix_tokens", "latent_tile", "latent_seed")
# Per-token inputs beside `input_ids` and `attention_mask`; a prefix token is ordinary text (type 0) to each of them.
TOKEN_TYPE_INPUTS = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


class PaletteGenerationMixin(LatentNamingMixin, GenerationMixin):
    """Adds the palette's arguments to `generate`."""

    def generate(
        self,
        *args: Any,
        latent: Any = None,
        domain: Domain = None,
        num_prefix_tokens: int | None = None,
        latent_tile: bool = False,
        latent_seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        The base's `generate`, with a latent prefix where one is asked for (eq. 9-10). Without any of the arguments
        below, token for token what the base does.

        N is the number of sampled sequences: prompts x `num_return_sequences`, or the number of prompts under beam
        search, where the beams of one prompt share one latent.

        Args:
            *args, **kwargs: As the base's `generate` takes them. `num_return_sequences` above 1 is allowed under
                greedy decoding together with a draw: k draws, k sequences.
            latent (`int`, list of N `int`, or `torch.Tensor`, *optional*): Codes to replay, as an integer or N
                integers; or explicit latents, as a float tensor of shape `(Z,)` or `(N, Z)`, tiled over L, or
                `(N, L, Z)`.
            domain (`str`, list of `str`, or `dict`, *optional*): Draw from a domain; from one domain per prompt; or
                from a mixture such as `{"math": 0.7, "code": 0.3}`, whose weights are normalised.
            num_prefix_tokens (`int`, *optional*): L. The config's where `latent` or `domain` asks for a prefix; given
                alone, it draws from the prior.
            latent_tile (`bool`, *optional*, defaults to `False`): One latent, L times, instead of L draws.
            latent_seed (`int`, *optional*): Seed of the draws; torch's global generator by default.

        Returns:
            What the base returns: prompt + completion, never a latent id. With `return_dict_in_generate=True` the
            output has `latent_codes` of shape `(N,)`, int64, -1 where an explicit tensor was given. Hidden states,
            attentions and the cache include the prefix positions.

        Raises:
            ValueError: naming the argument, its value and what is allowed, for contradictory or unknown palette
                arguments, wrong shapes or dtypes, latents that are not finite, codes or L out of range, a length
                beyond the model's positions, `inputs_embeds` or `position_ids` with a prefix, and a cache that was
                not made with the prefix.
        """
        palette_arguments = {
            "latent": latent,
            "domain": domain,
            "num_prefix_tokens": num_prefix_tokens,
            "latent_tile": latent_tile,
            "latent_seed": latent_seed,
        }
        given = [name for name, value in palette_arguments.items() if value is not None and name != "latent_tile"]
        asks_for_none = given == ["num_prefix_tokens"] and num_prefix_tokens is not False and num_prefix_tokens == 0
        asked = latent_tile or (bool(given) and not asks_for_none)
        cache = cache_of(kwargs)
        held = held_prefix(cache)
        if not asked and held is None:
            return super().generate(*args, **kwargs)
        if (asked or asks_for_none) and held is not None:
            raise ValueError(
                "`past_key_values` holds the prefix of an earlier call, which this one goes on with; drop the palette "
                f"arguments {given or ['latent_tile']}, or pass a fresh cache."
            )

        inputs = inspect.signature(super().generate).bind(*args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        num_return_sequences = inputs.pop("num_return_sequences", None)
        generation_config = inputs.pop("generation_config", None)
        # Read here, but not passed on: a second merge would take the `None` of a setting for "not given".
        resolved, settings = self._resolve_generation_config(generation_config, inputs)
        inputs = {name: value for name, value in inputs.items() if name not in settings}
        input_ids = self._prompt_ids(inputs, resolved)

        if num_return_sequences is None:
            num_return_sequences = resolved.num_return_sequences
        num_return_sequences = _checked_count(num_return_sequences)
        is_beam_search = (resolved.num_beams or 1) > 1
        per_prompt = 1 if is_beam_search else num_return_sequences
        changed: dict[str, Any] = {}
        if is_beam_search or (resolved.num_return_sequences or 1) != 1:
            changed["num_return_sequences"] = num_return_sequences if is_beam_search else 1

        self._check_frozen_layout()
        if held is None:
            self._sync_domains()
            prefix = resolve_prefix(self.config, len(input_ids), per_prompt, **palette_arguments)
            self._warn_untrained()
        else:
            prefix = held.prefix
        self._refuse_what_a_prefix_cannot_join(inputs, resolved, has_held_prefix=held is not None)

        if resolved.token_healing:
            # Healing decodes the prompt and encodes it again, which would lose the prefix: heal first.
            input_ids = self.heal_tokens(input_ids, inputs.get("tokenizer"))
            changed["token_healing"] = False
        if per_prompt > 1:
            input_ids, inputs = repeat_prompts(self, input_ids, inputs, per_prompt)
            allowed = inputs.get("prefix_allowed_tokens_fn")
            if allowed is not None:  # its first argument counts prompts
                inputs["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row // per_prompt, ids)
        length = prefix.num_prefix_tokens
        if held is not None and inputs.get("attention_mask") is None:
            refuse_new_ids_without_mask(input_ids, cache, length)
        mask = self._prompt_mask(input_ids, inputs, resolved)
        if held is None and mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(mask.shape)}, but the prompts have shape "
                f"{tuple(input_ids.shape)}: they must be equal where a prefix is inserted."
            )
        placed = held or PlacedPrefix(prefix, self._offsets(input_ids, mask))
        # A call that goes on from a cache may pass only the new ids, with the mask of the whole sequence.
        ids_hold_prefix = input_ids.shape[1] == mask.shape[1]
        if held is None:
            hold_prefix(cache, placed)  # now, not only afterwards: a call that breaks off leaves the prefix in it too
        else:
            held.check_rows(len(input_ids))
            if ids_hold_prefix or self.config.prefix_position == "start":
                held.check_offsets(self._offsets(input_ids, mask))
        self._check_positions(mask, input_ids, length, resolved, inputs)
        inputs["attention_mask"] = splice(mask, mask.new_ones(len(mask), length), placed.offsets)
        for name in TOKEN_TYPE_INPUTS:
            if inputs.get(name) is not None:
                inputs[name] = splice(inputs[name], inputs[name].new_zeros(len(mask), length), placed.offsets)
        if inputs.get("streamer") is not None:
            inputs["streamer"] = PrefixFreeStreamer(inputs["streamer"], self.config.latent_id_base)
        if ids_hold_prefix:
            changed.update(self._lengthened(resolved, length))
            if inputs.get("stopping_criteria") is not None:
                inputs["stopping_criteria"] = _lengthened_criteria(inputs["stopping_criteria"], length)
        if generation_config is None:
            settings = {**settings, **changed}
        else:
            generation_config = copy.deepcopy(generation_config)
            settings = {name: value for name, value in settings.items() if name not in changed}
            for name, value in changed.items():
                setattr(generation_config, name, value)

        with self._lend_ids(prefix, input_ids.device) as latent_ids:
            if ids_hold_prefix:
                input_ids = splice(input_ids, latent_ids, placed.offsets)
            output = super().generate(input_ids=input_ids, generation_config=generation_config, **settings, **inputs)

        offsets = placed.offsets.repeat_interleave(num_return_sequences if is_beam_search else 1)
        if isinstance(output, torch.Tensor):
            sequences = output
        else:
            sequences = output.sequences
            returned = cache_of(output)
            cache = cache if returned is None else returned
            output["latent_codes"] = prefix.codes
        hold_prefix(cache, placed)
        if ids_hold_prefix:
            sequences = cut(sequences, length, offsets)
        if isinstance(output, torch.Tensor):
            return sequences
        output["sequences"] = sequences
        return output

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        # A palette repo carries `custom_generate/generate.py` for unmodified bases. Loading it here would replace this
        # class's own `generate` by a partial of it, which breaks positional inputs.
        kwargs["trust_remote_code"] = False
        super().adjust_generation_fn(*args, **kwargs)

    def _resolve_generation_config(
        self, generation_config: GenerationConfig | None, inputs: dict[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """The merged generation config, and those of the inputs that it took."""
        own = {} if generation_config is None else vars(generation_config)
        given = [inputs, own, vars(self.generation_config)]
        resolved, others = self._prepare_generation_config(generation_config, **inputs)
        # Defaults go back to None: transformers tells a default from a choice by that.
        for name in ("max_length", "min_length"):
            if all(values.get(name) is None for values in given):
                setattr(resolved, name, None)
        # `output_attentions` and `output_hidden_states` are in both
        settings = {name: value for name, value in inputs.items() if name not in others or hasattr(resolved, name)}
        return resolved, settings

    def _prompt_ids(self, inputs: dict[str, Any], generation_config: GenerationConfig) -> torch.Tensor:
        if inputs.get("inputs_embeds") is not None:
            raise ValueError(
                "`inputs_embeds` cannot be combined with a latent prefix, which is inserted as token ids. Pass "
                "`input_ids`, or decode the latent with `model.palette.decode` and splice it yourself."
            )
        given = [ids for ids in (inputs.pop("inputs", None), inputs.pop("input_ids", None)) if ids is not None]
        if len(given) > 1:
            raise ValueError("`inputs` and `input_ids` were both given. Pass one of them.")
        if not given:
            bos = generation_config.bos_token_id
            if bos is None:
                raise ValueError("`input_ids` is missing, and the model has no BOS token to start from.")
            given = [torch.full((1, 1), bos, dtype=torch.int64, device=self.device)]
        if given[0].dim() != 2 or given[0].numel() == 0:
            raise ValueError(f"`input_ids` must have shape (B, S), not empty, got {tuple(given[0].shape)}.")
        return given[0]

    def _prompt_mask(
        self, input_ids: torch.Tensor, inputs: dict[str, Any], generation_config: GenerationConfig
    ) -> torch.Tensor:
        mask = inputs.pop("attention_mask", None)
        if mask is None:
            scratch = copy.deepcopy(generation_config)
            self._prepare_special_tokens(scratch, False, device=input_ids.device, batch_size=len(input_ids))
            mask = self._prepare_attention_mask_for_generation(input_ids, scratch, inputs)
        if mask.dim() != 2:
            raise ValueError(f"`attention_mask` must have shape (B, S), got {tuple(mask.shape)}.")
        return mask

    def _offsets(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Number of columns in front of each row's prefix: its left pads, and BOS with `"after_bos"`."""
        is_real = mask != 0
        offsets = torch.where(is_real.any(1), is_real.int().argmax(1), mask.shape[1])
        if self.config.prefix_position == "after_bos":
            first = input_ids.gather(1, offsets.clamp(max=input_ids.shape[1] - 1)[:, None])[:, 0]
            offsets = offsets + self._has_leading_bos(first)
        return offsets

    def _refuse_what_a_prefix_cannot_join(
        self, inputs: dict[str, Any], generation_config: GenerationConfig, has_held_prefix: bool
    ) -> None:
        if inputs.get("position_ids") is not None:
            raise ValueError(
                "`position_ids` cannot be combined with a latent prefix, which moves every position. Drop them; they "
                "are derived from `attention_mask`."
            )
        refuse_foreign_caches(inputs, has_held_prefix)
        if generation_config.cache_implementation == "paged":
            raise ValueError(
                "`cache_implementation`='paged' cannot be combined with a latent prefix: it switches to continuous "
                "batching, which ignores `attention_mask`. Call `generate_batch` with latent ids in the prompts: "
                "`model.insert_latent_ids(prompt_ids, latent_ids)` with rows of `model.latent_ids(codes, L)`."
            )

    def _num_positions(self, mask: torch.Tensor, input_ids: torch.Tensor, inputs: dict[str, Any]) -> int:
        """Positions of the longest prompt."""
        return int((mask != 0).sum(1).max())

    def _check_positions(
        self,
        mask: torch.Tensor,
        input_ids: torch.Tensor,
        length: int,
        generation_config: GenerationConfig,
        inputs: dict[str, Any],
    ) -> None:
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or limit < 0:  # XLNet's -1: no limit
            return
        new_tokens = generation_config.max_new_tokens
        if new_tokens is None:
            max_length = generation_config.max_length
            new_tokens = 1 if max_length is None else max(max_length - input_ids.shape[1], 1)
        # an image never takes more positions than tokens; a video may, where its seconds count (Qwen2.5-VL)
        has_videos = inputs.get("video_grid_thw") is not None
        if not has_videos and int((mask != 0).sum(1).max()) + length + new_tokens <= limit:
            return
        prompt = self._num_positions(mask, input_ids, inputs)
        if prompt + length + new_tokens > limit:
            raise ValueError(
                f"{prompt} positions of the prompt + `num_prefix_tokens`={length} + {new_tokens} new tokens are "
                f"{prompt + length + new_tokens} positions, but this model has {limit}. Lower `max_new_tokens` or "
                "`num_prefix_tokens`, or shorten the prompt."
            )

    @staticmethod
    def _lengthened(generation_config: GenerationConfig, length: int) -> dict[str, int]:
        """Lengths given in total tokens count the prompt and the completion, not the prefix."""
        changed = {}
        if generation_config.max_new_tokens is None and generation_config.max_length is not None:
            changed["max_length"] = generation_config.max_length + length
        if generation_config.min_new_tokens is None and generation_config.min_length:
            changed["min_length"] = generation_config.min_length + length
        return changed

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """
        The base's continuous batching. Latent ids in its prompts are read; the palette's arguments are not taken.

        Raises:
            ValueError: for palette arguments.
        """
        names = [name for name in PALETTE_ARGUMENTS if kwargs.get(name) is not None]
        if names:
            raise ValueError(
                f"`generate_batch` does not take {names}. Put the prefix into the prompts yourself: "
                "`model.insert_latent_ids(prompt_ids, latent_ids)` with rows of `model.latent_ids(codes, L)`; or call "
                "`generate`."
            )
        return super().generate_batch(*args, **kwargs)

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        input_ids_seq_length: int | None = None,
        encoder_input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        ordinary = OrdinaryIds(self.config.latent_id_base, _pad_of(generation_config))
        if encoder_input_ids is None or encoder_input_ids.dim() != 2 or not ordinary.found_in(encoder_input_ids):
            return super()._get_logits_processor(generation_config, input_ids_seq_length, encoder_input_ids, **kwargs)
        # Processors that count from the start or the end of the prompt are built for the ids that they will see.
        generation_config = copy.copy(generation_config)
        for name in ("max_length", "min_length"):
            if getattr(generation_config, name):
                setattr(generation_config, name, getattr(generation_config, name) - ordinary.num_dropped)
        if kwargs.get("model_kwargs"):
            # The ids have one row per prompt, the mask (left out where it is all ones) one per beam, and is used so.
            beams = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            mask = kwargs["model_kwargs"].get("attention_mask")
            mask = torch.ones_like(encoder_input_ids) if mask is None else mask[::beams]
            mask = ordinary.of_mask(mask).repeat_interleave(beams, dim=0)
            kwargs["model_kwargs"] = {**kwargs["model_kwargs"], "attention_mask": mask}
        processors = super()._get_logits_processor(
            generation_config,
            None if input_ids_seq_length is None else input_ids_seq_length - ordinary.num_dropped,
            ordinary(encoder_input_ids),
            **kwargs,
        )
        return OrdinaryProcessorList(processors, ordinary)

    def _get_stopping_criteria(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        return OrdinaryCriteriaList(criteria, OrdinaryIds(self.config.latent_id_base, _pad_of(generation_config)))

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> CandidateGenerator:
        ordinary = OrdinaryIds(self.config.latent_id_base)
        if not ordinary.found_in(kwargs["input_ids"]):
            return super()._get_candidate_generator(*args, **kwargs)
        generation_config = copy.copy(kwargs["generation_config"])
        generation_config.max_length -= ordinary.num_dropped
        generation_config.min_length = max((generation_config.min_length or 0) - ordinary.num_dropped, 0)
        model_kwargs = {name: value for name, value in kwargs["model_kwargs"].items() if name != "position_ids"}
        for name in ("attention_mask", *TOKEN_TYPE_INPUTS):
            if model_kwargs.get(name) is not None:
                model_kwargs[name] = ordinary.of_mask(model_kwargs[name])
        drafting = {
            "generation_config": generation_config,
            "input_ids": ordinary(kwargs["input_ids"]),
            "inputs_tensor": ordinary(kwargs["inputs_tensor"]),
            "logits_processor": LogitsProcessorList(kwargs["logits_processor"]),
            "model_kwargs": model_kwargs,
        }
        generator = super()._get_candidate_generator(*args, **{**kwargs, **drafting})
        if type(generator) in DRAFTS_ON_IDS:
            draft_on_ordinary_ids(generator, ordinary)
            return generator
        # The others draft with this model, or with its hidden states, where the prefix is at work.
        return super()._get_candidate_generator(*args, **kwargs)


def _checked_count(num_return_sequences: Any) -> int:
    if num_return_sequences is None:
        return 1
    is_integer = isinstance(num_return_sequences, numbers.Integral) and not isinstance(num_return_sequences, bool)
    if not is_integer or num_return_sequences < 1:
        raise ValueError(f"`num_return_sequences` must be an integer of at least 1, got {num_return_sequences!r}.")
    return int(num_return_sequences)


def _pad_of(generation_config: GenerationConfig) -> int:
    pad = generation_config.pad_token_id
    return pad if isinstance(pad, int) else 0


def _lengthened_criteria(criteria: list, length: int) -> StoppingCriteriaList:
    """A user's criteria, in which a maximal length counts the prompt and the completion, not the prefix."""
    lengthened = StoppingCriteriaList(
        copy.copy(one) if isinstance(one, MaxLengthCriteria) else one for one in criteria
    )
    for one in lengthened:
        if isinstance(one, MaxLengthCriteria):
            one.max_length += length
    return lengthened
