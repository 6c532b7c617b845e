"""`PaletteForCausalLM` and `PaletteForVision2Seq`: a palette on the causal and on the vision-language models of
transformers."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)

from .base_kinds import reads_images
from .configuration_palette import PaletteConfig
from .image_pipeline import let_pipelines_take_palette_arguments
from .palette_model import PaletteModelMixin
from .palette_vae import PaletteVAE
from .wrapped_base import palette_class

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .buffer_layers import BufferLinear as BufferLinear
    from .card_usage import prompt_of as prompt_of
    from .checked_tensors import palette_from_config as palette_from_config
    from .checkpoint_commit import commit_checkpoint as commit_checkpoint
    from .checkpoint_guards import shards_of_index as shards_of_index
    from .checkpoint_keys import name_keys_as_base as name_keys_as_base
    from .checkpoint_palette import CheckpointLocation as CheckpointLocation
    from .constant_channel import widened as widened
    from .generation_palette import PaletteGenerationMixin as PaletteGenerationMixin
    from .held_prefix import PlacedPrefix as PlacedPrefix
    from .kept_card import put_card as put_card
    from .latent_codes import LatentCodes as LatentCodes
    from .latent_embedding import ExplicitLatents as ExplicitLatents
    from .latent_naming import LatentNamingMixin as LatentNamingMixin
    from .latent_prefix import LatentPrefix as LatentPrefix
    from .named_strategies import Strategy as Strategy
    from .ordinary_ids import OrdinaryIds as OrdinaryIds
    from .palette_card import hub_name as hub_name
    from .per_layer_embeddings import per_layer_embeddings as per_layer_embeddings
    from .prompt_tuning import export_prompt_tuning as export_prompt_tuning
    from .pushed_palette import PaletteHubMixin as PaletteHubMixin
    from .repeated_prompts import repeat_prompts as repeat_prompts
    from .saved_palette import PaletteCheckpointMixin as PaletteCheckpointMixin
    from .shipped_code import copy_code as copy_code
    from .slot_decoder import SlotBlock as SlotBlock
    from .stock_base import unused_folder as unused_folder
    from .strategy_check import probe_ids as probe_ids
    from .strategy_guard import choose_guard as choose_guard
    from .strategy_text import token_texts as token_texts
    from .strategy_tokens import export_strategy_tokens as export_strategy_tokens
    from .supported_bases import class_of_base as class_of_base
    from .trace_images import placeholder_ids as placeholder_ids
    from .trace_pooling import trace_text as trace_text
    from .unverified_bases import check_unverified as check_unverified


_NOT_EXPORTED = (
    "what it writes is not known to be right beside images. Serve this palette with the checkpoint's own code, or on "
    "the unmodified base with `generate(custom_generate=...)`."
)


class PaletteForCausalLM(PaletteModelMixin):
    r"""
    A causal language model that can be given a latent before its first token (arXiv 2512.17206).

    For each base, a subclass of the base's own class is built (`PaletteQwen3ForCausalLM`, ...), so `forward`,
    attention back ends, PEFT target names, checkpoint keys and parallel plans stay the base's own. Make one with
    [`from_base`](#from_base) or load one with `from_pretrained`.

    Attributes:
        palette ([`PaletteVAE`] or `None`): The frozen palette, float32 buffers.
        tokenizer: The base's tokenizer, or `None`; saved with the model.
    """

    _auto_model_class = AutoModelForCausalLM


class PaletteForVision2Seq(PaletteModelMixin):
    r"""
    A vision-language model that can be given a latent before its first token, in front of text and images.

    For each base, a subclass of the base's own class is built (`PaletteQwen2_5_VLForConditionalGeneration`, ...), as
    for [`PaletteForCausalLM`]; `generate` takes the same arguments beside the base's pixels. The class has its name
    from the auto class `AutoModelForVision2Seq`, which transformers 5 no longer has: it is registered for
    `AutoModelForImageTextToText`.

    Attributes:
        palette ([`PaletteVAE`] or `None`): The frozen palette, float32 buffers.
        processor: The base's processor, or `None`; saved with the model. Just its tokenizer where there is no more.
        tokenizer: The tokenizer of that processor.
    """

    _auto_model_class = AutoModelForImageTextToText
    _processing_loaders = (AutoProcessor, AutoTokenizer)

    @property
    def processor(self) -> Any:
        """The base's processor, or `None`. Looked for once, where the model came from."""
        return self._processing

    @processor.setter
    def processor(self, processor: Any) -> None:
        self._processing = processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of [`processor`](#processor)."""
        processor = self._processing
        return getattr(processor, "tokenizer", None) if isinstance(processor, ProcessorMixin) else processor

    @tokenizer.setter
    def tokenizer(self, processor: Any) -> None:
        self._processing = processor

    def _num_positions(self, mask: torch.Tensor, input_ids: torch.Tensor, inputs: dict[str, Any]) -> int:
        count = getattr(self.base_model, "get_rope_index", None)
        grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if inputs.get(name) is not None]
        if count is None or not grids or mask.shape != input_ids.shape:
            return super()._num_positions(mask, input_ids, inputs)
        # M-RoPE: an image takes as many positions as its longer side has tokens.
        known = [name for name in inspect.signature(count).parameters if inputs.get(name) is not None]
        given = {name: inputs[name] for name in known if name != "attention_mask"}
        positions, _ = count(input_ids, attention_mask=mask, **given)
        return int(positions.max()) + 1

    def export_strategy_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: always: exports are verified on text models alone.
        """
        raise ValueError(f"`export_strategy_tokens` is for text models: {_NOT_EXPORTED}")

    def export_prompt_tuning(self, *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: always: PEFT's prompt tuning puts `inputs_embeds` in place of the ids by which these models
                find their images and positions.
        """
        raise ValueError(f"`export_prompt_tuning` is for text models: {_NOT_EXPORTED}")

    def _adopt(self, config: PaletteConfig, palette: PaletteVAE | None) -> None:
        super()._adopt(config, palette)
        let_pipelines_take_palette_arguments()


class PaletteModel:
    """What `AutoModel` builds: the class for the kind of a checkpoint's base, with `generate`."""

    config_class = PaletteConfig

    @staticmethod
    def from_pretrained(*args: Any, config: PaletteConfig, **kwargs: Any) -> Any:
        return _wrapper_of(type(config.base_config)).from_pretrained(*args, config=config, **kwargs)

    @staticmethod
    def _from_config(config: PaletteConfig, **kwargs: Any) -> Any:
        return _wrapper_of(type(config.base_config))._from_config(config, **kwargs)


def _wrapper_of(config_class: type) -> Any:
    return PaletteForVision2Seq if reads_images(config_class) else PaletteForCausalLM


def __getattr__(name: str) -> Any:
    """`PaletteQwen3ForCausalLM` and its like, which unpickling looks for in this module."""
    found = getattr(transformers, name.removeprefix("Palette"), None) if name.startswith("Palette") else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base_class: Any = found
    return palette_class(base_class, _wrapper_of(base_class.config_class))
