"""What the SFT, GRPO and RLOO trainers share: getting hold of the palette model, checking it, saving it."""

import importlib
import os
import warnings
from typing import Any

from accelerate.utils import gather_object
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from trl.trainer.utils import create_model_from_path

from .hub_pushes import HubPushMixin
from .latent_draws import DrawCounter, keyed_generator
from .palette_model_card import (
    PALETTE_PAPER,
    complete_card,
    hub_id,
    palette_facts,
    repo_name,
    training_facts,
    usage,
)
from .resume_mixin import ResumeMixin

PALETTE_FOLDER = "palette"  # where a palette is saved beside a LoRA adapter
_PACKAGE = "reasoning_palette.modeling_palette"


def default_output_dir(model: Any, suffix: str) -> str:
    """TRL's default: the model's name and the method's."""
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    return f"{name.split('/')[-1]}-{suffix}"


def palette_model_of(model: Any) -> Any:
    """The palette model inside of a `PeftModel`; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_palette(model: Any) -> bool:
    """Whether a model can read latent ids: known by its interface, since its class may have come from the Hub."""
    return getattr(palette_model_of(model), "palette", None) is not None and hasattr(
        palette_model_of(model), "insert_latent_ids"
    )


def prepare_model(model: Any, palette: Any, args: Any, quantization_config: Any = None) -> Any:
    """
    The model to hand to TRL.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): A palette model, or the id or path of a palette checkpoint;
            with `palette`, any base.
        palette (`PaletteVAE` or `str`, *optional*): A palette to put on `model`.
        args ([`PaletteArguments`]): The trainer's config.
        quantization_config (`BitsAndBytesConfig`, *optional*): As the trainer got it, for a base that is loaded here.

    Returns:
        `str`, `PreTrainedModel` or `PeftModel`: An id or path is left to TRL unless it needs a palette put on.

    Raises:
        ImportError: If `palette` is given and the `reasoning_palette` package is not installed.
        TypeError: If `args` is not a palette config.
        ValueError: If prefixes are asked for and neither `model` nor `palette` brings a palette, or both do.
    """
    if not hasattr(args, "num_prefix_tokens"):
        raise TypeError(
            f"`args` is a {type(args).__name__}, which has no palette arguments. Use the trainer's own config, "
            "such as PaletteGRPOConfig for PaletteGRPOTrainer; it takes everything that TRL's takes."
        )
    package = _import_package()
    if palette is None:
        if not isinstance(model, str):
            require_palette(model, args)
        return model
    if package is None:
        raise ImportError(
            "Putting `palette=` on a base needs the reasoning-palette package: `pip install reasoning-palette`, or "
            "pass a palette checkpoint as `model`."
        )
    if has_palette(model):
        raise ValueError(
            "`model` has a palette already, and `palette` is given too. Leave `palette` out, or pass the base that "
            "the palette belongs on."
        )
    if hasattr(model, "get_base_model"):
        raise ValueError(
            "`model` is a PeftModel and `palette` is given. Put the palette on first, with "
            "`from_base(base, palette)` of PaletteForCausalLM or PaletteForVision2Seq, then add the adapter; or pass "
            "`peft_config`."
        )
    if isinstance(model, str):
        # With the settings that TRL's trainers load a model with.
        init_kwargs = dict(args.model_init_kwargs or {})
        init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            init_kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
            init_kwargs["device_map"] = None
        model = create_model_from_path(model, **init_kwargs)
        # By which TRL loads the reference: a palette-only checkpoint names its base with the revision.
        revision = init_kwargs.get("revision")
        return _wrapper(package, model).from_base(model, palette=palette, base_model_revision=revision)
    return _wrapper(package, model).from_base(model, palette=palette)


def _wrapper(package: Any, base: Any) -> Any:
    """The class for palettes on a base: bases that read images have one of their own."""
    reads_images = type(base.config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return package.PaletteForVision2Seq if reads_images else package.PaletteForCausalLM


def _import_package() -> Any:
    """
    The package, or None if these trainers came with a checkpoint and it is not installed. Importing it registers its
    classes, so that TRL can load a palette checkpoint without running the code in it.
    """
    try:
        return importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name in (_PACKAGE, _PACKAGE.partition(".")[0]):
            return None
        raise


def require_palette(model: Any, args: Any) -> None:
    """
    Raises:
        ValueError: If `args` asks for prefixes and `model` has no palette.
    """
    if args.num_prefix_tokens > 0 and not has_palette(model):
        raise ValueError(
            f"`num_prefix_tokens` is {args.num_prefix_tokens}, but `model` ({type(model).__name__}) has no palette. "
            "Pass `palette=` (a PaletteVAE, or the path or id of a palette checkpoint), a palette checkpoint as "
            "`model`, or `num_prefix_tokens=0` to train without prefixes."
        )


def default_processing_class(model: Any, processing_class: Any) -> Any:
    """The given one, else the processor or tokenizer of a palette model in memory, else None: TRL loads one."""
    if processing_class is not None:
        return processing_class
    model = palette_model_of(model)
    return getattr(model, "processor", None) or getattr(model, "tokenizer", None)


class PaletteTrainerMixin(HubPushMixin, ResumeMixin):
    """Mixed in front of a TRL trainer; [`check_palette_setup`] is called once that trainer is built."""

    args: Any
    accelerator: Any
    model: Any
    state: Any
    _paper = PALETTE_PAPER

    @property
    def palette_model(self) -> Any:
        """The palette model, without accelerate's and PEFT's wrappers."""
        return palette_model_of(self.accelerator.unwrap_model(self.model))

    @property
    def latent_seed(self) -> int:
        """Seed of all draws."""
        return self.args.seed if self.args.latent_seed is None else self.args.latent_seed

    @property
    def uses_latents(self) -> bool:
        """Whether the next batch gets prefixes."""
        return self.args.num_prefix_tokens > 0 and (self.model.training or self.args.latent_eval)

    def check_palette_setup(self) -> None:
        """
        Refuses what cannot work, with the reason and the way out.

        Raises:
            ValueError: If the model has no palette, if L or the domain does not fit it, or if something stands between
                latent ids and the hooks that read them.
        """
        self._draw_counter = DrawCounter()
        palette = getattr(self.palette_model, "palette", None)
        self._domains_at_start = dict(palette.domains) if palette is not None else {}
        if self.args.num_prefix_tokens == 0:
            return
        require_palette(self.palette_model, self.args)
        model = self.palette_model
        if self.args.num_prefix_tokens > model.config.max_prefix_tokens:
            raise ValueError(
                f"`num_prefix_tokens` is {self.args.num_prefix_tokens}, but this palette allows 0 to "
                f"`max_prefix_tokens`={model.config.max_prefix_tokens}."
            )
        code = model.draw_codes(1, self.args.latent_domain, generator=keyed_generator(0))  # refuses unknown domains
        model.latent_ids(code, self.args.num_prefix_tokens, self.args.latent_tile)  # refuses what cannot be tiled
        self._check_processes()
        if self.model is not model:
            # Constants that DDP would broadcast at every forward, by the names they have in the adapter's wrapper.
            constants = {id(buffer) for buffer in model.palette.buffers()}
            names = [name for name, buffer in self.model.named_buffers() if id(buffer) in constants]
            self.model._ddp_params_and_buffers_to_ignore = names

        embedding = model.get_input_embeddings()
        if type(embedding).__module__.partition(".")[0] == "peft":
            raise ValueError(
                "A PEFT adapter wraps the input embedding, and its own look-up does not know latent ids. Take the "
                "embedding out of `target_modules`, `modules_to_save` and `trainable_token_indices`. TRL trains the "
                "new tokens of `chat_template_path` so: add them to the base and save it before, or train in full."
            )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError(
                "`model` holds adapters from `add_adapter`, which transformers saves alone, so that the palette would "
                "be lost. Pass `peft_config` to the trainer, or wrap the model with `peft.get_peft_model`."
            )
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "Context and sequence parallelism cut rows into pieces, so that a prefix would land in each of them. "
                "Set `cp_size=1` and `sp_size=1`, or `num_prefix_tokens=0`."
            )

    def _check_processes(self) -> None:
        """Every process must read latent ids the same, and hold the palette itself."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.cpu_ram_efficient_loading:
            # accelerate 1.15 `fsdp2_load_full_state_dict` reads `.device_mesh` of every entry of the state dict, which
            # buffers do not have, and transformers loads nothing on all processes but the first.
            raise ValueError(
                "FSDP's `cpu_ram_efficient_loading=True` builds the model on one process and hands out its sharded "
                "parameters; the palette consists of buffers, which stay whole on every process. Set "
                "`fsdp_cpu_ram_efficient_loading: false` in the accelerate config, or `cpu_ram_efficient_loading` in "
                "`fsdp_config`."
            )
        if plugin is not None and plugin.fsdp_version == 1 and self.accelerator.mixed_precision != "no":
            raise ValueError(
                f"FSDP 1 casts buffers to {self.accelerator.mixed_precision} (`buffer_dtype`), and with them the "
                "palette, whose meaning is its float32 numbers. Set `fsdp_version: 2` in the accelerate config, or "
                "train with `bf16=False, fp16=False`."
            )
        if self.accelerator.num_processes > 1:
            prints = gather_object([self.palette_model.latent_fingerprint()])
            if len(set(prints)) > 1:
                raise ValueError(
                    f"The {len(prints)} processes have different palettes, so a latent id would mean another latent "
                    "on each. Load the palette from one checkpoint, or seed all processes alike before making it."
                )

    def latent_generator(self, mode: str, *index: int) -> Any:
        """The generator of one draw: `index` tells it from the others of the global step."""
        return keyed_generator(self.latent_seed, mode, self.state.global_step, *index)

    def take_draws(self, mode: str, count: int) -> int:
        """The index, in the global step, of the first of `count` draws that all processes take together now."""
        return self._draw_counter.take(mode, self.state.global_step, count)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """As TRL's trainers do, and with a section on the palette and on how its latents were used."""
        super().create_model_card(model_name, dataset_name, tags)  # type: ignore[misc]
        if not self.is_world_process_zero():  # type: ignore[attr-defined]
            return
        model, args = self.palette_model, self.args
        num_slots = getattr(getattr(model, "palette", None), "num_slots", None)
        is_vision = "AutoModelForImageTextToText" in (getattr(model.config, "auto_map", None) or {})
        facts, snippet, base = training_facts(args, self.latent_seed, num_slots), None, None
        if has_palette(model):
            base = hub_id(model.config.base_model_name_or_path)
            facts = {
                **palette_facts(model.palette, base, type(model).__name__.removeprefix("Palette")),
                "seed of the palette, which gives codes their meaning": str(model.config.latent_seed),
                **facts,
            }
            adapter_base = None
            if self._is_adapter():
                named = hub_id(model.config.name_or_path) or "folder or id of the palette checkpoint"
                beside = f'snapshot_download(repo) + "/{PALETTE_FOLDER}"'
                adapter_base = beside if self._saves_palette_with_adapter() else f'"{named}"'
            length = args.num_prefix_tokens or model.config.num_prefix_tokens
            repo = repo_name(self, model_name)
            snippet = usage(repo, model.palette.domains, length, args.latent_tile, adapter_base, is_vision)
        task = "image-text-to-text" if is_vision else "text-generation"
        complete_card(os.path.join(args.output_dir, "README.md"), facts, snippet, base, task)

    def _commit_function(self) -> Any:
        return getattr(self.palette_model, "commit_checkpoint", None)

    def _is_adapter(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model), "get_base_model")

    def _adapter_lacks_its_palette(self) -> bool:
        """
        An adapter on a palette checkpoint points there; one on a palette put on in memory would lose it, and so it
        would lose a domain that was added since.
        """
        model = self.palette_model
        return not model.config.name_or_path or model.palette.domains != self._domains_at_start

    def _saves_palette_with_adapter(self) -> bool:
        """Whether the palette is written beside the adapter: if it is lacking, and its base is of ordinary weights."""
        config = self.palette_model.config
        base_is_named = bool(config.base_model_name_or_path) and (not config.name_or_path or config.palette_only)
        return self._adapter_lacks_its_palette() and base_is_named

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        model = self.palette_model
        is_adapter = self._is_adapter() and has_palette(model)
        if not (self.args.should_save and is_adapter and self._adapter_lacks_its_palette()):
            return
        if self._saves_palette_with_adapter():
            folder = os.path.join(output_dir or self.args.output_dir, PALETTE_FOLDER)
            model.save_pretrained(folder, palette_only=True)
        elif model.config.name_or_path:
            warnings.warn(
                f"The adapter is saved without the domains that were added since {model.config.name_or_path!r} was "
                "loaded, to which it points. Save the whole with `trainer.palette_model.save_pretrained` after "
                "`trainer.model.merge_and_unload()`, or fit the domains again after loading.",
                stacklevel=2,
            )
        else:
            warnings.warn(
                "The adapter is saved without its palette: base and palette were made in memory, and no folder or id "
                "names them. Save the palette model with `save_pretrained` and train from that folder.",
                stacklevel=2,
            )
