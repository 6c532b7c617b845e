"""`PaletteConfig`: a base model's own config plus everything that gives a latent id its meaning."""

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .base_kinds import auto_map, reads_images
from .checkpoint_guards import check_config_names
from .latent_codes import LatentCodes
from .palette_vae import SlotSettings, check_size

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .buffer_layers import BufferLinear as BufferLinear
    from .slot_decoder import SlotBlock as SlotBlock

PREFIX_POSITIONS = ("start", "after_bos")


class PaletteConfig(PreTrainedConfig):
    r"""
    Configuration of a palette model: the config of the base, whose attributes can be read and set through this one,
    and the palette's own fields.

    Args:
        base_config (`PreTrainedConfig` or `dict`): The base model's config. Copied, so that building a
            `PaletteConfig` from a live model's config leaves that model alone.
        latent_dim (`int`, *optional*, defaults to 64): Z. `None` for a model without a palette; it refuses
            prefixes.
        encoder_hidden_sizes (`list[int]`, *optional*, defaults to `[512]`): Widths of the encoder's hidden layers;
            the `"mlp"` decoder mirrors them.
        decoder_type (`str`, *optional*, defaults to `"mlp"`): Kind of the decoder: `"mlp"` makes a row of each latent,
            `"gpt"` a whole prefix of one latent.
        num_slots (`int`, *optional*): Slots of a latent of the `"gpt"` decoder, and the most rows it can make. 8 by
            default; `None` for other decoders.
        num_decoder_layers (`int`, *optional*): Layers of the `"gpt"` decoder. 2 by default; `None` for other decoders.
        num_segments (`int`, *optional*): Parts of a trace that the `"gpt"` decoder's slots stand for. `num_slots` by
            default; `None` for other decoders.
        merge_images (`bool`, *optional*, defaults to `False`): Traces are pooled with their images, not by their text
            alone: the palette was trained so.
        num_prefix_tokens (`int`, *optional*): L where `generate` is asked for a prefix but not for L. 8 by default,
            or `num_slots`.
        max_prefix_tokens (`int`, *optional*): Largest L. 64 by default, or `num_slots`.
        num_codes (`int`, *optional*, defaults to 1048576): Codes per source.
        latent_seed (`int`, *optional*, defaults to 0): Key of the generator that turns codes into latents.
        latent_id_base (`int`, *optional*, defaults to 16777216): First latent id; must lie beyond the vocabulary.
        prefix_position (`str`, *optional*, defaults to `"start"`): `"start"` puts the prefix in front of the prompt
            (eq. 10), `"after_bos"` behind a leading BOS, for models that break without BOS in front.
        domains (`dict`, *optional*): Name -> `{"source": int, "count": int}`, kept by `add_domain`.
        palette_only (`bool`, *optional*, defaults to `False`): The checkpoint holds the palette without the base.
        base_model_name_or_path (`str`, *optional*): Where a palette-only checkpoint finds its base.
        base_model_revision (`str`, *optional*): Revision of that base.

    Raises:
        TypeError: for every field of another type than its own.
        ValueError: for a missing base config and for every field outside of what it allows.
    """

    model_type = "palette"
    # The older form of `sub_configs_defaults`, read by every supported transformers version; `base_config` is resolved
    # in `__post_init__` because its class is only known from its `model_type`.
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    has_no_defaults_at_init = True

    base_config: Any = None  # a dict on its way in, a PreTrainedConfig from then on
    latent_dim: int | None = 64
    encoder_hidden_sizes: list[int] | tuple[int, ...] = (512,)
    decoder_type: str = "mlp"
    num_slots: int | None = None  # with the four below, filled in by `__post_init__`
    num_decoder_layers: int | None = None
    num_segments: int | None = None
    num_prefix_tokens: Any = None
    max_prefix_tokens: Any = None
    num_codes: int = 1 << 20
    latent_seed: int = 0
    latent_id_base: int = 1 << 24
    prefix_position: str = "start"
    merge_images: bool = False
    domains: Any = None  # a dict after `__post_init__`
    palette_only: bool = False
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None

    def __post_init__(self, **kwargs):
        base = self.base_config
        if base is None:
            raise ValueError(
                "`base_config` is None, but a PaletteConfig describes a palette on a base model. Pass the base's "
                "config, or wrap a model with `PaletteForCausalLM.from_base(base)`."
            )
        if not isinstance(base, dict | PreTrainedConfig):
            raise TypeError(f"`base_config` must be a config, or its content as a dict, got {base!r}.")
        model_type = base.get("model_type") if isinstance(base, dict) else base.model_type
        if model_type == self.model_type:
            raise ValueError(
                "`base_config` has model_type='palette': a palette stands on a plain model, not on another palette. "
                "Pass the config of that model."
            )
        if isinstance(base, dict):
            if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`base_config` has model_type={model_type!r}, which this version of transformers "
                    "does not know. Upgrade transformers; bases with code of their own can be wrapped with "
                    "`PaletteForCausalLM.from_base(loaded_base)`, but not loaded by name yet."
                )
            base = CONFIG_MAPPING[model_type](**base)
        # super().__post_init__ resets `_attn_implementation` recursively, also that of a live model's config
        # (measured: logits off by 11 to 21 without an error), so it must not see the base.
        self.base_config = None
        # every checkpoint has an `auto_map` of its own
        of_base = {name: kwargs.pop(name) for name in list(kwargs) if _is_of(base, name) and name != "auto_map"}
        attn_implementation = kwargs.pop("attn_implementation", None)
        super().__post_init__(**kwargs)
        self.base_config = copy.deepcopy(base)
        for name, value in of_base.items():
            setattr(self.base_config, name, value)
        if attn_implementation is not None:
            self._attn_implementation = attn_implementation
        else:
            self._attn_implementation_internal = base._attn_implementation
        self._experts_implementation_internal = getattr(base, "_experts_implementation", None)
        if self.dtype is None:
            self.dtype = base.dtype
        self.auto_map = auto_map(type(base))
        if self.architectures is None:
            self.architectures = [self.auto_map["AutoModel"].partition(".")[2]]
        self._fill_in()
        self._check_types()
        self.encoder_hidden_sizes = list(self.encoder_hidden_sizes)
        self.domains = dict(self.domains or {})
        self._check()

    def _fill_in(self) -> None:
        """Defaults that depend on the decoder."""
        names = [entry.name for entry in fields(SlotSettings)]
        given = {name: getattr(self, name) for name in names}
        settings = SlotSettings.resolve(self.decoder_type, self.latent_dim, **given)
        for name in names:
            setattr(self, name, getattr(settings, name))
        for name, default in (("num_prefix_tokens", 8), ("max_prefix_tokens", 64)):
            if getattr(self, name) is None:
                setattr(self, name, self.num_slots or default)

    def _check_types(self) -> None:
        for name in ("num_prefix_tokens", "max_prefix_tokens", "num_codes", "latent_id_base"):
            check_size(name, getattr(self, name))
        check_size("latent_seed", self.latent_seed, minimum=0, maximum=(1 << 64) - 1)
        if self.latent_dim is not None:  # None: no palette
            check_size("latent_dim", self.latent_dim)
        if not isinstance(self.encoder_hidden_sizes, list | tuple):
            raise TypeError(
                f"`encoder_hidden_sizes` must be a list of widths such as [512], got {self.encoder_hidden_sizes!r}."
            )
        for width in self.encoder_hidden_sizes:
            check_size("encoder_hidden_sizes", width)
        for name in ("palette_only", "merge_images"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        for name in ("base_model_name_or_path", "base_model_revision"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"`{name}` must be a string or None, got {value!r}.")
        if self.domains is not None and not isinstance(self.domains, dict):
            raise TypeError(f"`domains` must map names to sources and counts, got {self.domains!r}.")
        for name, entry in (self.domains or {}).items():
            if not isinstance(name, str) or not isinstance(entry, dict) or entry.keys() != {"source", "count"}:
                raise TypeError(
                    f'`domains` must map names to {{"source": int, "count": int}}, got {name!r}: {entry!r}.'
                )
            check_size(f"domains[{name!r}]['source']", entry["source"])
            check_size(f"domains[{name!r}]['count']", entry["count"])

    def _check(self) -> None:
        if self.num_slots is not None and self.max_prefix_tokens > self.num_slots:
            raise ValueError(
                f"`max_prefix_tokens`={self.max_prefix_tokens} is larger than `num_slots`={self.num_slots}, but with "
                "`decoder_type`='gpt' one latent makes one row per slot. Leave max_prefix_tokens out."
            )
        if self.merge_images and not reads_images(type(self.base_config)):
            raise ValueError(f"`merge_images`=True, but a {self.base_config.model_type!r} base reads no images.")
        if self.num_prefix_tokens > self.max_prefix_tokens:
            raise ValueError(
                f"`num_prefix_tokens`={self.num_prefix_tokens} is larger than `max_prefix_tokens`="
                f"{self.max_prefix_tokens}. Raise max_prefix_tokens (before any code is used: it is part of the ids)."
            )
        self.check_prefix_position()
        codes = self.latent_codes
        vocab_size = getattr(self.get_text_config(), "vocab_size", None)
        if vocab_size is not None:
            codes.check_vocabulary(vocab_size)
        if self.num_domain_sources >= codes.num_sources:
            raise ValueError(
                f"`domains` uses source {self.num_domain_sources}, but this layout has room for sources 0 to "
                f"{codes.num_sources - 1}. Lower num_codes or max_prefix_tokens in a new palette."
            )

    def check_prefix_position(self) -> None:
        """
        Raises:
            ValueError: for an unknown one, also where it was set later.
        """
        if self.prefix_position not in PREFIX_POSITIONS:
            raise ValueError(f"`prefix_position` must be one of {PREFIX_POSITIONS}, got {self.prefix_position!r}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig` does; a file that leads to pickles or to code is refused."""
        for found in (config_dict, config_dict.get("base_config")):
            if isinstance(found, dict):
                check_config_names(found, "this palette")
        return super().from_dict(config_dict, **kwargs)

    @property
    def latent_codes(self) -> LatentCodes:
        """The layout of codes and latent ids."""
        return LatentCodes(self.latent_id_base, self.num_codes, self.max_prefix_tokens)

    @property
    def num_domain_sources(self) -> int:
        """How many domain Gaussians the palette holds: a refit takes a new source, so the newest has the highest."""
        return max((entry["source"] for entry in (self.domains or {}).values()), default=0)

    @property
    def keys_to_ignore_at_inference(self) -> list[str]:
        return getattr(self.base_config, "keys_to_ignore_at_inference", ["past_key_values"])

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The base's text config."""
        return self.base_config.get_text_config(*args, **kwargs)

    def _get_generation_parameters(self) -> dict[str, Any]:
        return self.base_config._get_generation_parameters()

    def validate(self) -> None:
        """The base's config by its own rules: the generic ones would see its attributes through ours."""
        if isinstance(self.base_config, PreTrainedConfig):
            self.base_config.validate()

    @property
    def per_layer_config(self) -> Any:
        return self.base_config.per_layer_config

    def to_diff_dict(self) -> dict[str, Any]:
        """As `PreTrainedConfig` does, and like it without the folder or id that the config was loaded from."""
        found = super().to_diff_dict()
        if isinstance(found.get("base_config"), dict):
            found["base_config"].pop("_name_or_path", None)
        return found

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """No effect: `auto_map` and the code files are written for every auto class at once."""

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base_config")
        # Seen through this config, overrides of single layers would be written and validated as its own.
        if isinstance(base, PreTrainedConfig) and not name.startswith("__") and name != "_heterogeneity_spec":
            return getattr(base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("base_config")
        if isinstance(base, PreTrainedConfig) and name not in self.__dict__ and _is_of(base, name):
            setattr(base, name, value)  # e.g. `use_cache`, `pad_token_id`: the base's layers read their own config
        else:
            super().__setattr__(name, value)


def _is_of(base: PreTrainedConfig, name: str) -> bool:
    """Whether a name that was given to a `PaletteConfig` is an attribute of its base's config."""
    is_own = name.startswith("_") or hasattr(PaletteConfig, name)
    # `gradient_checkpointing` is declared nowhere; a model that is built from the base's config reads it there.
    return not is_own and (hasattr(base, name) or name == "gradient_checkpointing")
