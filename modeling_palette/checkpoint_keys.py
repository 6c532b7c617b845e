"""Keys of a palette's checkpoint: those of its base's own checkpoints, beside the palette's."""

from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping


def name_keys_as_base(model: Any) -> None:
    """
    Register the base's conversion of keys for the class of a palette model.

    transformers names the keys of many families in files otherwise than in memory (`model.language_model.layers` is
    `language_model.model.layers` in LLaVA's), and finds how by the class or the model type of the outermost model;
    a palette's are its own, so only the conversions of the parts would be found, and engines could not read the file.

    Args:
        model ([`PaletteForCausalLM`] or [`PaletteForVision2Seq`]): The palette model, with its modules.
    """
    conversion = get_checkpoint_conversion_mapping(model.base_class.__name__)
    if conversion is None:
        model_type = model.config.base_config.model_type
        conversion = get_checkpoint_conversion_mapping(model_type)
        parts = [
            part
            for part in model.modules()
            if isinstance(part, PreTrainedModel) and part is not model and part.config.model_type == model_type
        ]
        # Through such a part, transformers finds the conversion by itself, and would apply it twice.
        if any(get_checkpoint_conversion_mapping(type(part).__name__) is None for part in parts):
            return
    if conversion is not None:
        register_checkpoint_conversion_mapping(type(model).__name__, conversion, overwrite=True)
