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
            (name, part)
            for name, part in model.named_modules()
            if isinstance(part, PreTrainedModel) and part is not model and part.config.model_type == model_type
        ]
        # Through such a part, transformers finds the conversion by itself, and would apply it twice.
        found = [name for name, part in parts if get_checkpoint_conversion_mapping(type(part).__name__) is None]
        if found:
            keys = list(model.state_dict())
            conversion = [one for one in conversion or () if _reads_names_of_parts(one, keys, found[0])]
    if conversion:
        register_checkpoint_conversion_mapping(type(model).__name__, conversion, overwrite=True)


def _reads_names_of_parts(renaming: Any, keys: list[str], part: str) -> bool:
    """
    Whether a renaming reaches keys by the name of the part that they begin with (`^model.language_model.` of Qwen3.5,
    `.embeddings.` of Dory). Those that transformers finds through the part see what is behind its name alone.
    """
    if hasattr(renaming, "operations"):  # it takes weights apart or together
        return False
    back = renaming.reverse_transform()
    pairs = [(key, key.removeprefix(f"{part}.")) for key in keys]
    renamed = [tuple(back.rename_source_key(key)[0] != key for key in pair) for pair in pairs]
    return (True, False) in renamed and (True, True) not in renamed
