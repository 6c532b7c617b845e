"""`PaletteForCausalLM`: a palette on any causal language model of transformers."""

import copy
import functools
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel

from .checkpoint_palette import (
    LOCATION_ARGUMENTS,
    copy_code,
    latent_fingerprint,
    load_palette,
    palette_from_config,
    save_palette,
)
from .configuration_palette import PaletteConfig
from .generation_palette import PaletteGenerationMixin
from .latent_embedding import LatentEmbedding, embedding_width
from .palette_vae import PaletteVAE
from .supported_bases import check_base, class_of_base
from .trace_pooling import Trace, pool_traces


class PaletteForCausalLM(PaletteGenerationMixin):
    r"""
    A causal language model that can be given a latent before its first token (arXiv 2512.17206).

    For each base, a subclass of the base's own class is built (`PaletteQwen3ForCausalLM`, ...), so `forward`,
    attention back ends, PEFT target names, checkpoint keys and parallel plans stay the base's own. Make one with
    [`from_base`](#from_base) or load one with `from_pretrained`.

    Attributes:
        palette ([`PaletteVAE`] or `None`): The frozen palette, float32 buffers.
        tokenizer: The base's tokenizer, or `None`; saved with the model.
    """

    config_class = PaletteConfig
    base_class: Any = None
    _tokenizer: Any
    _looked_for_tokenizer: bool
    _keep_in_fp32_modules_strict: Any

    def __init__(self, config: PaletteConfig, *args: Any, **kwargs: Any):
        if self.base_class is None:
            raise TypeError(
                "PaletteForCausalLM is built on a base: use `PaletteForCausalLM.from_base(base)`, "
                "`PaletteForCausalLM.from_pretrained(folder)` or `AutoModelForCausalLM.from_config(palette_config)`."
            )
        self.base_class.__init__(self, config.base_config, *args, **kwargs)
        self._adopt(config, palette=None)

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel | str,
        palette: PaletteVAE | str | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> "PaletteForCausalLM":
        r"""
        Put a palette on a base model.

        The base's weights are shared, not copied, and the base stays usable as it is.

        Args:
            base (`PreTrainedModel` or `str`): A loaded model, a folder, or a Hub id.
            palette ([`PaletteVAE`] or `str`, *optional*): A palette, or the folder or Hub id of a palette-only
                checkpoint, whose codes and domains are kept. Without one, any request for a prefix raises.
            tokenizer (*optional*): Saved with the model. Loaded from the base's id where there is one.
            **kwargs: Fields of [`PaletteConfig`] such as `num_prefix_tokens` or `latent_seed`; the rest goes to the
                base's `from_pretrained`.

        Returns:
            A model that is an instance of `PaletteForCausalLM` and of the base's class.

        Raises:
            ValueError: if the base already has a palette, belongs to an unsupported family, has another width than
                the palette, or if its vocabulary reaches into the latent ids.
            TypeError: if `base` or `palette` is something else, or `kwargs` are left over for a loaded base.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PaletteConfig.__annotations__}
        for name in ("base_config", "latent_dim", "encoder_hidden_sizes", "decoder_type", "domains", "palette_only"):
            if name in fields:
                raise TypeError(f"`{name}` is taken from `base` and `palette`; it cannot be given to `from_base`.")
        if isinstance(base, str | Path):
            fields.setdefault("base_model_revision", kwargs.get("revision"))
            base = AutoModelForCausalLM.from_pretrained(base, **kwargs)
        elif kwargs:
            raise TypeError(f"{sorted(kwargs)} are for loading a base, but `base` is loaded already. Drop them.")
        if not isinstance(base, PreTrainedModel):
            raise TypeError(f"`base` must be a transformers model, a folder or a Hub id, got {type(base).__name__}.")
        check_base(base)

        if isinstance(palette, str | Path):
            palette, saved = load_palette(str(palette))
            # What gives codes their meaning stays; which base it was on does not: this is another one, perhaps.
            of_that_base = ("base_config", "palette_only", "base_model_name_or_path", "base_model_revision")
            kept = {name: getattr(saved, name) for name in PaletteConfig.__annotations__ if name not in of_that_base}
            fields = {**kept, **fields}
        elif palette is not None and not _is_palette(palette):
            raise TypeError(f"`palette` must be a PaletteVAE, a folder or a Hub id, got {type(palette).__name__}.")
        fields.setdefault("base_model_name_or_path", base.config.name_or_path or None)
        config = PaletteConfig(
            base_config=base.config,
            **{
                **fields,
                "latent_dim": None if palette is None else palette.latent_dim,
                "encoder_hidden_sizes": [] if palette is None else list(palette.hidden_sizes),
                "decoder_type": "mlp" if palette is None else palette.decoder_type,
                "domains": {} if palette is None else palette.domains,
            },
        )
        return _share_modules(base, palette_class(type(base), cls), config, palette, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *model_args: Any,
        config: PaletteConfig | None = None,
        base_trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        r"""
        Load a full or a palette-only checkpoint.

        Args:
            pretrained_model_name_or_path (`str`): Folder or Hub id.
            config ([`PaletteConfig`], *optional*): Its config, where it is loaded already.
            base_trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code in the *base's* repo may run
                when a palette-only checkpoint loads its base. `trust_remote_code` speaks of the palette's repo alone.
            **kwargs: As `PreTrainedModel.from_pretrained` takes them.

        Returns:
            The model; with `output_loading_info=True`, the model and that information.

        Raises:
            ValueError: if the checkpoint is not a palette's, or its palette is incomplete or does not fit.
        """
        location = {name: kwargs[name] for name in LOCATION_ARGUMENTS if kwargs.get(name) is not None}
        if config is None:
            found, _ = PaletteConfig.get_config_dict(pretrained_model_name_or_path, **location)
            if found.get("model_type") != PaletteConfig.model_type:
                raise ValueError(
                    f"{pretrained_model_name_or_path!r} is a {found.get('model_type')!r} checkpoint, not a palette's. "
                    "Put a palette on it with `PaletteForCausalLM.from_base(base, palette=...)`."
                )
            if found.get("palette_only"):
                # Beside our fields, kwargs speak of the load of the base (dtype, attn_implementation, ...).
                fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PaletteConfig.__annotations__}
                config = PaletteConfig.from_pretrained(pretrained_model_name_or_path, **location, **fields)
            else:
                config, kwargs = PaletteConfig.from_pretrained(
                    pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
                )
                kwargs.update(location)
        elif isinstance(config, str | Path):
            config = PaletteConfig.from_pretrained(config)
        if config.palette_only:
            return cls._from_palette_only(
                pretrained_model_name_or_path, config, location, base_trust_remote_code, *model_args, **kwargs
            )
        base_class = class_of_base(config)
        loader = super(PaletteForCausalLM, palette_class(base_class, cls._wrapper())).from_pretrained
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = loader(
            pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
        )
        lost = [key for key in info["missing_keys"] if key.startswith("palette.")]
        if lost:
            raise ValueError(
                f"The checkpoint {pretrained_model_name_or_path!r} lacks {len(lost)} tensors of its palette "
                f"({lost[0]}, ...): it would decode codes to other latents. Save it again from the palette model."
            )
        return (model, info) if wants_info else model

    @classmethod
    def _from_palette_only(
        cls,
        name_or_path: str,
        config: PaletteConfig,
        location: dict[str, Any],
        base_trust_remote_code: bool,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        palette, config = load_palette(name_or_path, config, **location)
        if config.base_model_name_or_path is None:
            raise ValueError(
                f"The palette-only checkpoint {name_or_path!r} does not say which base it belongs to. Load it with "
                "`PaletteForCausalLM.from_base(base, palette=...)`."
            )
        # What belongs to the palette's repo must not reach the load of the base: the base has its own revision and
        # subfolder, and trust in one repo is no trust in the other.
        for name in ("revision", "subfolder", "trust_remote_code", "adapter_kwargs", "_from_auto", "_from_pipeline"):
            kwargs.pop(name, None)
        wants_info = kwargs.pop("output_loading_info", False)
        if config._attn_implementation is not None:  # given to an auto class, which has put it into the config
            kwargs.setdefault("attn_implementation", config._attn_implementation)
        base, info = AutoModelForCausalLM.from_pretrained(
            config.base_model_name_or_path,
            *model_args,
            revision=config.base_model_revision or "main",
            trust_remote_code=base_trust_remote_code,
            output_loading_info=True,
            **kwargs,
        )
        check_base(base)
        palette_config = copy.deepcopy(config)
        palette_config._name_or_path = str(name_or_path)
        model = _share_modules(base, palette_class(type(base), cls._wrapper()), palette_config, palette, None)
        return (model, info) if wants_info else model

    @classmethod
    def _wrapper(cls) -> Any:
        """The public class, also when called on one of the classes built for a base."""
        return cls if cls.base_class is None else cls.__bases__[0]

    @classmethod
    def _from_config(cls, config: PaletteConfig, **kwargs: Any) -> "PaletteForCausalLM":
        concrete = palette_class(class_of_base(config), cls._wrapper())
        return super(PaletteForCausalLM, concrete)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """No effect: the config's `auto_map` names every auto class, and `save_pretrained` copies the code."""

    def save_pretrained(
        self, save_directory: str | Path, palette_only: bool = False, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        r"""
        Write a checkpoint that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads without
        this package.

        Args:
            save_directory (`str` or `Path`): The folder.
            palette_only (`bool`, *optional*, defaults to `False`): Write the palette and the name of its base instead
                of the base's weights.
            push_to_hub (`bool`, *optional*, defaults to `False`): Upload the folder afterwards.
            **kwargs: As `PreTrainedModel.save_pretrained` takes them.

        Raises:
            ValueError: if a palette-only checkpoint has no palette or does not know the name of its base, or if the
                fields that give codes their meaning were changed on the live config.
        """
        self._sync_domains()
        self._check_frozen_layout()
        if getattr(self, "_hf_peft_config_loaded", False) and not palette_only:
            raise ValueError(
                "This model holds adapters from `add_adapter`, and transformers would save them alone: an adapter "
                "folder points to the raw base, and the palette would be lost. Save the palette model first and train "
                "the adapter with `peft.get_peft_model`, which saves it in a folder of its own."
            )
        if palette_only and push_to_hub:
            raise ValueError(
                "`palette_only` with `push_to_hub` is not supported: save the folder, then upload it with "
                "`huggingface_hub.HfApi().upload_folder`."
            )
        if palette_only:
            self._require_palette()
            if self.config.base_model_name_or_path is None:
                raise ValueError(
                    "A palette-only checkpoint needs the name of its base, but this base was built in memory. Set "
                    "`model.config.base_model_name_or_path` to its folder or Hub id, or save a full checkpoint."
                )
        is_main_process = kwargs.get("is_main_process", True)
        if palette_only:
            if is_main_process:
                Path(save_directory).mkdir(parents=True, exist_ok=True)
                config = copy.deepcopy(self.config)
                config.palette_only = True
                config.architectures = [type(self).__name__]
                config.save_pretrained(save_directory)
                save_palette(self.palette, save_directory)
                # transformers reads the base's own; engines read the one beside the config
                self.generation_config.save_pretrained(save_directory)
        else:
            was_palette_only, self.config.palette_only = self.config.palette_only, False
            try:
                super().save_pretrained(save_directory, **kwargs)
            finally:
                self.config.palette_only = was_palette_only
        if is_main_process:
            copy_code(save_directory, self.config.name_or_path)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(save_directory)
        if push_to_hub:
            repo_id = kwargs.get("repo_id") or Path(save_directory).name
            names = ("commit_message", "private", "token", "revision", "create_pr", "max_shard_size", "tags")
            self.push_to_hub(repo_id, **{name: kwargs[name] for name in names if name in kwargs})

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer, or `None`. Looked for once, where the model came from."""
        if not self._looked_for_tokenizer:
            self._looked_for_tokenizer = True
            for source in (self.config.name_or_path, self.config.base_model_name_or_path):
                if source:
                    try:
                        # With the base's config at hand, no config (and so no code) of that source is looked for.
                        self._tokenizer = AutoTokenizer.from_pretrained(
                            source, config=self.config.base_config, trust_remote_code=False
                        )
                        break
                    except (OSError, ValueError, KeyError, TypeError):  # that source has no tokenizer
                        continue
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer, self._looked_for_tokenizer = tokenizer, True

    def pool_traces(self, traces: Iterable[Trace]) -> torch.Tensor:
        """Mean input embeddings `(N, H)` of traces (eq. 5); see [`trace_pooling.pool_traces`]."""
        return pool_traces(traces, self.get_input_embeddings(), self.tokenizer)

    def add_domain(self, name: str, traces: Iterable[Trace]) -> int:
        r"""
        Add a domain from its traces: pool, encode, fit. No retraining; a few hundred traces are enough.

        Args:
            name (`str`): Name to be used as `generate(domain=name)`. A name in use gets a new Gaussian under a new
                source number, so that codes drawn before keep their meaning.
            traces (iterable): Rows, texts, or token ids; see [`trace_pooling.pool_traces`].

        Returns:
            `int`: The source number of the domain.

        Raises:
            ValueError: without a palette, and as `PaletteVAE.fit_domain` does.
        """
        self._require_palette()
        pooled = self.pool_traces(traces).to(self.palette.embedding_mean.device)
        self._check_room_for_domains(len(self.palette.domain_means) + 1)
        mean, _ = self.palette.encode(pooled)
        source = self.palette.fit_domain(name, mean)
        self._sync_domains()
        return source

    def latent_fingerprint(self) -> str:
        """A digest of all that decides what a latent id means; see [`checkpoint_palette.latent_fingerprint`]."""
        self._require_palette()
        return latent_fingerprint(self.palette, self.config)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """As the base does; the palette moves to the new embedding (e.g. after `resize_token_embeddings`)."""
        super().set_input_embeddings(value)
        if self.__dict__.get("_latent_embedding") is not None:
            self._latent_embedding.install(value)

    def _adopt(self, config: PaletteConfig, palette: PaletteVAE | None) -> None:
        """Turn a freshly built or shared base into a palette model."""
        # `pipeline` looks a model's class name up among the registered ones, and calls it unsupported otherwise.
        classes = (PaletteForCausalLM, *PaletteForCausalLM.__subclasses__())
        AutoModelForCausalLM.register(PaletteConfig, classes, exist_ok=True)
        base_config = self.config
        config._attn_implementation_internal = base_config._attn_implementation
        config._experts_implementation_internal = getattr(base_config, "_experts_implementation", None)
        config.__dict__["base_config"] = base_config  # the very object that the base's layers read
        self.config = config
        self.name_or_path = config.name_or_path
        self._tokenizer, self._looked_for_tokenizer = None, False
        self._warned_untrained = False
        self._latent_embedding = None
        self.palette = None
        if config.latent_dim is None:
            return
        embedding = self.get_input_embeddings()
        if palette is None:
            palette = palette_from_config(config, embedding_width(embedding))
        latent_embedding = LatentEmbedding(palette, config.latent_codes, config.latent_seed)
        latent_embedding.install(embedding)
        self.palette, self._latent_embedding = palette, latent_embedding
        # Not "palette" as a whole: transformers would turn the boolean among its buffers into a float.
        floats = {f"palette.{name}" for name, buffer in palette.named_buffers() if buffer.is_floating_point()}
        self._keep_in_fp32_modules_strict = set(self._keep_in_fp32_modules_strict or ()) | floats
        # DDP would broadcast these constants again at every forward.
        self._ddp_params_and_buffers_to_ignore = [f"palette.{name}" for name, _ in palette.named_buffers()]


def palette_class(base_class: Any, wrapper: Any = PaletteForCausalLM) -> Any:
    """The subclass of a base's class that carries a palette, e.g. `PaletteQwen3ForCausalLM`."""
    for known in wrapper.__subclasses__():
        if known.base_class is base_class:
            return known

    names = list(inspect.signature(base_class.forward).parameters)[1:]

    @functools.wraps(base_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
        # A latent id is no token that could be predicted; as a label it would index beyond the logits.
        if kwargs.get("labels") is not None:
            kwargs["labels"] = kwargs["labels"].masked_fill(kwargs["labels"] >= self.config.latent_id_base, -100)
        return base_class.forward(self, **kwargs)

    namespace = {
        "__module__": wrapper.__module__,
        "__doc__": f"`{base_class.__name__}` with a palette; see [`{wrapper.__name__}`].",
        "config_class": PaletteConfig,
        "base_class": base_class,
        "forward": forward,
    }
    # GenerationMixin is named for `can_generate`, which looks for it among the direct bases.
    return type(f"Palette{base_class.__name__}", (wrapper, base_class, GenerationMixin), namespace)


def _share_modules(
    base: PreTrainedModel, concrete: Any, config: PaletteConfig, palette: PaletteVAE | None, tokenizer: Any
) -> Any:
    """A palette model around the modules of `base`, which stays a plain model."""
    model = concrete.__new__(concrete)
    model.__dict__.update(
        {name: copy.copy(value) if isinstance(value, dict | set) else value for name, value in vars(base).items()}
    )
    hook = model.__dict__.pop("_hf_hook", None)
    if hook is not None:  # accelerate bound its forward to the base; bind it to this model
        from accelerate.hooks import add_hook_to_module

        for name in ("forward", "_old_forward"):
            model.__dict__.pop(name, None)
        add_hook_to_module(model, hook)
    if palette is not None:
        palette = palette.to(base.get_input_embeddings().weight.device)
    model._adopt(config, palette)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _is_palette(palette: Any) -> bool:
    # The class of a palette that came with a checkpoint's remote code is not this module's.
    return isinstance(palette, PaletteVAE) or type(palette).__name__ == PaletteVAE.__name__


def __getattr__(name: str) -> Any:
    """`PaletteQwen3ForCausalLM` and its like, which unpickling looks for in this module."""
    base_class = getattr(transformers, name.removeprefix("Palette"), None) if name.startswith("Palette") else None
    if not isinstance(base_class, type) or not issubclass(base_class, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return palette_class(base_class)
