"""What PEFT reads from a model's config or class, which for a palette model are not those of its base."""

import copy
from typing import Any

from transformers import AutoConfig


def fitted_peft_config(peft_config: Any, model: Any, args: Any) -> Any:
    """
    An adapter's config as PEFT would complete it for the base.

    PEFT knows which modules to adapt by the `model_type` of the model's config, and how large virtual tokens are by
    its sizes. And an adapter without a `task_type` is saved with the name of the model's class, which
    `AutoPeftModelForCausalLM` imports from well-known libraries only.

    Args:
        peft_config (`PeftConfig`, *optional*): As the trainer got it; not changed.
        model (`str`, `PreTrainedModel` or `PeftModel`): What is handed to TRL.
        args ([`PaletteArguments`]): The trainer's config.

    Returns:
        `PeftConfig`: For a palette model a copy with `task_type`, with the base's sizes for prompt learning, and with
        `target_modules` where nothing says what to adapt and PEFT has a default for the base. Otherwise the config.
    """
    if not hasattr(peft_config, "peft_type"):
        return peft_config
    base_config = getattr(_config_of(model, args), "base_config", None)
    if base_config is None:
        return peft_config
    try:  # whoever has such a config has PEFT; transformers asks everyone for what is imported outside of a `try`
        from peft import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.utils.other import _prepare_prompt_learning_config
    except ImportError as error:
        raise ImportError("`peft_config` needs PEFT: `pip install peft`.") from error

    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = peft_config.task_type or "CAUSAL_LM"
    if peft_config.is_prompt_learning:
        return _prepare_prompt_learning_config(peft_config, base_config)
    names_none = getattr(peft_config, "target_modules", "") is None
    if names_none and not getattr(peft_config, "target_parameters", None):
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_config.peft_type)
        modules = getattr(tuner, "target_module_mapping", {}).get(base_config.model_type)
        peft_config.target_modules = set(modules) if isinstance(modules, list) else modules
    return peft_config


def _config_of(model: Any, args: Any) -> Any:
    if not isinstance(model, str):
        return model.config
    settings = args.model_init_kwargs or {}
    return AutoConfig.from_pretrained(
        model,
        revision=settings.get("revision"),
        trust_remote_code=settings.get("trust_remote_code", args.trust_remote_code),
    )
