"""`PaletteForCausalLM` and `PaletteForVision2Seq`: a palette on the causal and on the vision-language models of
transformers."""

from typing import Any

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
    base_class = getattr(transformers, name.removeprefix("Palette"), None) if name.startswith("Palette") else None
    if not isinstance(base_class, type) or not issubclass(base_class, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    config_class: Any = base_class.config_class
    return palette_class(base_class, _wrapper_of(config_class))
