"""Rollouts by vLLM: latent ids travel in the prompts, to an engine that runs this package's plugin.

The plugin (`modeling_palette/vllm_serving/plugin.py`) decodes the ids where vLLM renders prompts. Here is what the
trainers see to: that the engine has it, that it reads ids as the policy does, and that it gets every rollout's own
prompt.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import ProcessorMixin

_PLUGIN = "reasoning_palette.modeling_palette.vllm_serving.plugin"


def check_reads_text(processing_class: Any) -> None:
    """
    Raises:
        ValueError: If the policy is a vision-language model: the plugin reads latent ids in prompts of text.
    """
    if isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"`use_vllm` is True and `processing_class` is a {type(processing_class).__name__}, but the engine reads "
            "latent prefixes in prompts of text models only. Set `use_vllm=False`, or `num_prefix_tokens=0`."
        )


def prepare_engine(args: Any) -> None:
    """
    Called before TRL builds the engine.

    Args:
        args ([`PaletteRolloutArguments`]): The trainer's config.

    Raises:
        ImportError: If the engine is colocated and the `reasoning-palette` package is not installed.
        ValueError: For settings under which latent ids would not be read.
    """
    if args.vllm_model_impl not in ("auto", "vllm"):
        raise ValueError(
            f"`vllm_model_impl` is {args.vllm_model_impl!r}, but latent prefixes need vLLM's own model of the base. "
            "Set `vllm_model_impl='auto'`."
        )
    if "seed" in (args.generation_kwargs or {}):
        raise ValueError(
            f"`generation_kwargs` has the seed {args.generation_kwargs['seed']}, with which vLLM gives one answer to "
            "one prompt: the rollouts of a group that have no prefix, or share one, would be copies. Leave it out; "
            "the engine is seeded by `seed`."
        )
    if args.vllm_mode != "colocate":
        return
    needed = args.num_prefix_tokens + (args.max_completion_length or 0)
    if args.vllm_max_model_length is not None and needed >= args.vllm_max_model_length:
        raise ValueError(
            f"`num_prefix_tokens` ({args.num_prefix_tokens}) and `max_completion_length` "
            f"({args.max_completion_length}) leave no room for a prompt in `vllm_max_model_length`="
            f"{args.vllm_max_model_length}. Raise it: it counts prefix, prompt and completion."
        )
    if importlib.util.find_spec("vllm") is None:
        return  # TRL's own error says how to install it
    try:
        plugin = importlib.import_module(_PLUGIN)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(_PLUGIN.partition(".")[0]):
            raise
        raise ImportError(
            "`use_vllm=True` with latent prefixes needs the reasoning-palette package, which brings vLLM's plugin: "
            "`pip install reasoning-palette`."
        ) from error
    plugin.register_palettes()


def check_engine(vllm_generation: Any, fingerprint: str, is_main_process: bool) -> None:
    """
    Args:
        vllm_generation (`trl.generation.vllm_generation.VLLMGeneration`): TRL's engine or client.
        fingerprint (`str`): The policy's `latent_fingerprint()`.
        is_main_process (`bool`): The process that holds the client.

    Raises:
        ValueError: If the engine does not read latent ids, or would read them otherwise than the policy; on every
            process.
    """
    if vllm_generation.mode == "colocate":
        overrides = vllm_generation.llm.llm_engine.model_config.hf_overrides
        problem = _problem_of("The colocated vLLM engine", overrides, fingerprint)
    else:
        problem = None
        if is_main_process:
            client = vllm_generation.vllm_client
            overrides = client.get_server_info()["model_config"]["hf_overrides"]
            problem = _problem_of(f"The vLLM server at {client.base_url}", overrides, fingerprint)
        problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise ValueError(problem)


def _problem_of(engine: str, overrides: Any, fingerprint: str) -> str | None:
    found = overrides.get("latent_fingerprint") if isinstance(overrides, dict) else None
    if found is None:
        return (
            f"{engine} does not read latent ids. Install reasoning-palette in its environment (check that "
            "`VLLM_PLUGINS` does not leave it out) and serve the palette checkpoint that is trained from."
        )
    if found != fingerprint:
        return (
            f"{engine} has another palette than `model` (fingerprint {found}, not {fingerprint}), so it would sample "
            "under other latents than the loss is computed under. Save the model, and serve and train from that "
            "folder."
        )
    return None


def send_every_prompt(vllm_generation: Any, is_guided: Callable[[], bool]) -> None:
    """
    Makes TRL's client send the prompts of a group one by one.

    In server mode TRL takes the prompts of a group to be copies and sends the first (`all_prompts[::num_generations]`
    in TRL 1.16's `vllm_generation.py`): every rollout would be sampled under the first one's latent. A `rollout_func`
    that calls `vllm_generation.generate` itself comes through here too.

    Args:
        vllm_generation (`trl.generation.vllm_generation.VLLMGeneration`): TRL's engine or client.
        is_guided (`Callable`): Whether some rollouts of the generation at work have prefixes; the same on every rank.
    """
    generate = vllm_generation.generate

    def generate_every_prompt(prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> Any:
        return generate(prompts, images, 1 if is_guided() else num_generations, profiler)

    vllm_generation.generate = generate_every_prompt
