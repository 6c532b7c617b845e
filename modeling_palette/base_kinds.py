"""Text or vision: the two kinds of bases, told apart by the auto class of transformers that builds them."""

from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

_WRAPPERS = {False: "PaletteForCausalLM", True: "PaletteForVision2Seq"}
_AUTO_CLASSES = {False: "AutoModelForCausalLM", True: "AutoModelForImageTextToText"}


def reads_images(config_class: Any) -> bool:
    """
    Whether bases with a config of this class read images beside text. Some of them (Gemma 3) are causal language
    models to transformers as well; their text models alone have configs of their own, and are of the other kind.
    """
    return config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def wrapper_name(config_class: Any) -> str:
    """The public class of palettes on bases with a config of this class."""
    return _WRAPPERS[reads_images(config_class)]


def auto_map(config_class: Any) -> dict[str, str]:
    """Auto class -> class of the shipped code, for palettes on bases with a config of this class."""
    reference = f"modeling_palette.{wrapper_name(config_class)}"
    return {
        "AutoConfig": "configuration_palette.PaletteConfig",
        "AutoModel": reference,
        _AUTO_CLASSES[reads_images(config_class)]: reference,
    }


def check_kind(config_class: Any, wrapper: str, what: str) -> None:
    """
    Raises:
        ValueError: if palettes on bases with a config of this class are not of the class `wrapper`.
    """
    is_vision = reads_images(config_class)
    if wrapper != _WRAPPERS[is_vision]:
        reads = "images beside text" if is_vision else "text alone"
        raise ValueError(
            f"{what} reads {reads}: use {_WRAPPERS[is_vision]} in place of {wrapper}, and {_AUTO_CLASSES[is_vision]} "
            f"in place of {_AUTO_CLASSES[not is_vision]}."
        )
