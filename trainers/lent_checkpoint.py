"""A name for a palette model that was made in memory, for as long as TRL is being built around it."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.integrations import is_deepspeed_zero3_enabled

from .palette_trainer_mixin import has_palette, palette_model_of


@contextlib.contextmanager
def lent_checkpoint(model: Any, args: Any, processing_class: Any, peft_config: Any) -> Iterator[None]:
    """
    TRL loads the reference model (`beta`) and the colocated vLLM engine by the name in the policy's config. A palette
    put on in memory has none: it is written to a temporary folder that lends its name, and is gone afterwards. Where
    the base has a name the folder holds the palette alone, and the base's weights come from where they came from
    before; otherwise it is a full checkpoint. One process of each machine writes it, for all of them.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): What is handed to TRL.
        args ([`PaletteRolloutArguments`]): The trainer's config.
        processing_class: Written beside the model, for the engine; the model's own tokenizer if None.
        peft_config (`PeftConfig`, *optional*): As the trainer got it.

    Raises:
        ValueError: If a full checkpoint is needed under ZeRO-3, where no process holds all the weights; or if `model`
            is an adapter on a model without a name, and the engine needs one.
    """
    policy = palette_model_of(model)
    is_adapted = peft_config is not None or policy is not model
    needs_name = (args.beta != 0 and not is_adapted) or (args.use_vllm and args.vllm_mode == "colocate")
    is_nameless = hasattr(policy, "insert_latent_ids") and not policy.config.name_or_path
    if not (is_nameless and needs_name):
        yield
        return
    if policy is not model:
        raise ValueError(
            "`use_vllm` is True, for which the engine loads the model by name; but this adapter stands on a palette "
            "model that was made in memory and has none. Save the palette model first and wrap what "
            "`from_pretrained` loads, or pass `peft_config` to the trainer."
        )
    palette_only = has_palette(policy) and bool(policy.config.base_model_name_or_path)
    if not palette_only and is_deepspeed_zero3_enabled():
        reason = f"`beta` is {args.beta}" if not args.use_vllm else "`use_vllm` is True"
        raise ValueError(
            f"{reason}, for which TRL loads the model by name a second time; but it was made in memory, has no name, "
            "and under ZeRO-3 no process could write it. Save it before, and pass the folder as `model`."
        )
    state = PartialState()
    with contextlib.ExitStack() as stack:
        folder = None
        if state.is_local_main_process:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="palette_"))
            with _saving_here(policy):
                policy.save_pretrained(folder, palette_only=palette_only)
            if processing_class is not None:
                processing_class.save_pretrained(folder)
        folder = gather_object([folder])[state.process_index - state.local_process_index]
        policy.name_or_path = policy.config.name_or_path = folder
        try:
            yield
            state.wait_for_everyone()  # others may be reading
        finally:
            policy.name_or_path = policy.config.name_or_path = ""
            if getattr(peft_config, "base_model_name_or_path", None) == folder:  # PEFT has noted what is gone now
                peft_config.base_model_name_or_path = ""


@contextlib.contextmanager
def _saving_here(model: Any) -> Iterator[None]:
    """transformers (5.24) has `save_pretrained` write on the first process of all alone."""
    model.should_save_on_this_rank = lambda is_main_process: True
    try:
        yield
    finally:
        del model.should_save_on_this_rank
