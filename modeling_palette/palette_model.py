"""What palette models of every kind share: a base, the palette on it, its tokenizer or processor, and domains."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint_keys import name_keys_as_base
from .checkpoint_palette import (
    CheckpointLocation,
    latent_fingerprint,
    load_palette,
    loaded_commit,
    palette_from_config,
)
from .configuration_palette import PaletteConfig
from .latent_embedding import LatentEmbedding, embedding_width
from .palette_vae import PaletteVAE
from .per_layer_embeddings import per_layer_embeddings, read_latent_ids_as_pad
from .prompt_tuning import export_prompt_tuning
from .saved_palette import PaletteCheckpointMixin
from .strategy_tokens import export_strategy_tokens
from .supported_bases import check_base, is_verified
from .trace_images import ImageFeatures, placeholder_ids
from .trace_pooling import Trace, pool_traces
from .unverified_bases import check_unverified
from .wrapped_base import palette_class, share_modules


class PaletteModelMixin(PaletteCheckpointMixin):
    """
    A model of transformers with a palette; [`PaletteForCausalLM`] and [`PaletteForVision2Seq`] are its kinds.

    Attributes:
        palette ([`PaletteVAE`] or `None`): The frozen palette, float32 buffers.
        tokenizer: The base's tokenizer, or `None`; saved with the model.
    """

    config_class = PaletteConfig
    base_class: Any = None
    _auto_model_class: Any  # which auto class builds the bases of this kind
    _processing_loaders: tuple[Any, ...] = (AutoTokenizer,)
    _kept_processing: Any
    _looked_for_processing: bool
    _keep_in_fp32_modules_strict: Any

    def __init__(self, config: PaletteConfig, *args: Any, **kwargs: Any):
        if self.base_class is None:
            name, auto_class = type(self).__name__, self._auto_model_class.__name__
            raise TypeError(
                f"{name} is built on a base: use `{name}.from_base(base)`, `{name}.from_pretrained(folder)` or "
                f"`{auto_class}.from_config(palette_config)`."
            )
        self.base_class.__init__(self, config.base_config, *args, **kwargs)
        self._adopt(config, palette=None)

    def _init_weights(self, module: Any) -> None:
        # The base's knows nothing of the palette's modules: built on the meta device, they would stay as they fell.
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()
        else:
            super()._init_weights(module)

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel | str,
        palette: PaletteVAE | str | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Put a palette on a base model.

        The base's weights are shared, not copied, and the base stays usable as it is.

        Args:
            base (`PreTrainedModel` or `str`): A loaded model, a folder, or a Hub id.
            palette ([`PaletteVAE`] or `str`, *optional*): A palette, or the folder or Hub id of a palette-only
                checkpoint, whose codes and domains are kept. Without one, any request for a prefix raises.
            tokenizer (*optional*): A tokenizer or processor, saved with the model. Loaded from the base's id where
                there is one.
            **kwargs: Fields of [`PaletteConfig`] such as `num_prefix_tokens` or `latent_seed`; the rest goes to the
                base's `from_pretrained`.

        Returns:
            A model that is an instance of this class and of the base's.

        Raises:
            ValueError: if the base already has a palette, belongs to an unsupported family, is of the other kind (text
                or vision), has another width than the palette, or if its vocabulary reaches into the latent ids.
            TypeError: if `base` or `palette` is something else, or `kwargs` are left over for a loaded base.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PaletteConfig.__annotations__}
        for name in ("base_config", *_fields_of(None), "palette_only"):
            if name in fields:
                raise TypeError(f"`{name}` is taken from `base` and `palette`; it cannot be given to `from_base`.")
        if isinstance(base, str | Path):
            source, base = str(base), cls._load_base(base, **kwargs)
            # the commit, where it is known: the palette belongs to these weights, not to what a branch holds later
            fields.setdefault("base_model_revision", loaded_commit(source, **kwargs) or kwargs.get("revision"))
        elif kwargs:
            raise TypeError(f"{sorted(kwargs)} are for loading a base, but `base` is loaded already. Drop them.")
        if not isinstance(base, PreTrainedModel):
            raise TypeError(f"`base` must be a transformers model, a folder or a Hub id, got {type(base).__name__}.")
        check_base(base, cls.__name__)

        if isinstance(palette, str | Path):
            palette, saved = load_palette(str(palette))
            # What gives codes their meaning stays; which base it was on does not: this is another one, perhaps.
            of_that_base = ("base_config", "palette_only", "base_model_name_or_path", "base_model_revision")
            kept = {name: getattr(saved, name) for name in PaletteConfig.__annotations__ if name not in of_that_base}
            fields = {**kept, **fields}
        elif palette is not None and not _is_palette(palette):
            raise TypeError(f"`palette` must be a PaletteVAE, a folder or a Hub id, got {type(palette).__name__}.")
        base_name = fields.get("base_model_name_or_path", base.config.name_or_path or None)
        fields["base_model_name_or_path"] = _told_from_an_id(base_name)
        config = PaletteConfig(
            base_config=base.config,
            **{
                **fields,
                **_fields_of(palette),
            },
        )
        if palette is not None and not is_verified(type(base), base.config.model_type):
            check_unverified(base, config.latent_id_base)
        return share_modules(base, palette_class(type(base), cls), config, palette, tokenizer)

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer, or `None`. Looked for once, where the model came from."""
        return self._processing

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._processing = tokenizer

    @property
    def _processing(self) -> Any:
        """The tokenizer or processor that is saved with the model."""
        if not self._looked_for_processing:
            self._looked_for_processing = True
            own = {name: value for name, value in self._location.items() if name != "force_download"}
            of_base = {name: own[name] for name in own if name not in ("revision", "subfolder")}
            of_base["revision"] = self.config.base_model_revision or "main"
            sources = (self.config.name_or_path, own), (self.config.base_model_name_or_path, of_base)
            for source, location in sources:
                if source and self._kept_processing is None:
                    self._kept_processing = self._load_processing(source, location)
        return self._kept_processing

    @_processing.setter
    def _processing(self, processing: Any) -> None:
        self._kept_processing, self._looked_for_processing = processing, True

    def _load_processing(self, source: str, location: dict[str, Any]) -> Any:
        for loader in self._processing_loaders:
            try:
                # With the base's config at hand, no config (and so no code) of that source is looked for.
                found = loader.from_pretrained(
                    source, config=self.config.base_config, trust_remote_code=False, **location
                )
            # that source has none, or one whose own library is not installed
            except (OSError, ValueError, KeyError, TypeError, ImportError):
                continue
            # Of some families (Qwen, Gemma) transformers makes an empty tokenizer where a folder holds none.
            if not isinstance(found, PreTrainedTokenizerBase) or len(found) > len(found.all_special_ids):
                return found
        return None

    def pool_traces(self, traces: Iterable[Trace]) -> torch.Tensor:
        """
        Mean input embeddings `(N, H)` of traces (eq. 5), or `(N, G, H)` of their segments where the palette is one of
        segments; with their images where it was trained so. See [`trace_pooling.pool_traces`].
        """
        return pool_traces(
            traces,
            self.get_input_embeddings(),
            self.tokenizer,
            ignored_ids=placeholder_ids(self.config),
            image_features=ImageFeatures(self, self._processing) if self.config.merge_images else None,
            num_segments=self.config.num_segments or 1,
        )

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

    def export_strategy_tokens(self, folder: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Latents as named tokens of a stock checkpoint; see [`strategy_tokens.export_strategy_tokens`]."""
        return export_strategy_tokens(self, folder, *args, **kwargs)

    def export_prompt_tuning(self, folder: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """One latent as a PEFT adapter of the base; see [`prompt_tuning.export_prompt_tuning`]."""
        return export_prompt_tuning(self, folder, *args, **kwargs)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """As the base does; the palette moves to the new embedding (e.g. after `resize_token_embeddings`)."""
        super().set_input_embeddings(value)
        if self.__dict__.get("_latent_embedding") is not None:
            self._latent_embedding.install(value)

    def set_per_layer_input_embeddings(self, value: nn.Module) -> None:
        """As the base does, where it has per-layer embeddings; to the new ones, too, latent ids are pads."""
        super().set_per_layer_input_embeddings(value)
        if self.__dict__.get("_latent_embedding") is not None:
            self._shield(value)

    def _shield(self, table: nn.Module | None) -> None:
        read_latent_ids_as_pad(table, self.config.latent_id_base, self.config.get_text_config().pad_token_id)

    def _adopt(self, config: PaletteConfig, palette: PaletteVAE | None) -> None:
        """Turn a freshly built or shared base into a palette model."""
        # `pipeline` looks a model's class name up among the registered ones, and calls it unsupported otherwise.
        wrapper = self._wrapper()
        self._auto_model_class.register(PaletteConfig, (wrapper, *wrapper.__subclasses__()), exist_ok=True)
        base_config = self.config
        config._attn_implementation_internal = base_config._attn_implementation
        config._experts_implementation_internal = getattr(base_config, "_experts_implementation", None)
        config.__dict__["base_config"] = base_config  # the very object that the base's layers read
        self.config = config
        self.name_or_path = config.name_or_path
        name_keys_as_base(self)
        self._location = CheckpointLocation()
        self._kept_processing, self._looked_for_processing = None, False
        self._warned_untrained = False
        self._latent_embedding = None
        self.palette = None
        if config.latent_dim is None:
            return
        embedding = self.get_input_embeddings()
        if palette is None:
            palette = palette_from_config(config, embedding_width(embedding))
        else:
            module: Any
            for module in palette.modules():
                module._is_hf_initialized = True  # a later `init_weights()` leaves it alone, as it does a loaded base
        latent_embedding = LatentEmbedding(palette, config.latent_codes, config.latent_seed)
        latent_embedding.install(embedding)
        self.palette, self._latent_embedding = palette, latent_embedding
        self._shield(per_layer_embeddings(self))
        # Not "palette" as a whole: transformers would turn the boolean among its buffers into a float.
        floats = {f"palette.{name}" for name, buffer in palette.named_buffers() if buffer.is_floating_point()}
        self._keep_in_fp32_modules_strict = set(self._keep_in_fp32_modules_strict or ()) | floats
        # DDP would broadcast these constants again at every forward.
        self._ddp_params_and_buffers_to_ignore = [f"palette.{name}" for name, _ in palette.named_buffers()]


def _fields_of(palette: PaletteVAE | None) -> dict[str, Any]:
    """The fields of a config that describe a palette, or that there is none."""
    return {
        "latent_dim": None if palette is None else palette.latent_dim,
        "encoder_hidden_sizes": [] if palette is None else list(palette.hidden_sizes),
        "decoder_type": "mlp" if palette is None else palette.decoder_type,
        "num_slots": None if palette is None else palette.num_slots,
        "num_decoder_layers": None if palette is None else palette.num_decoder_layers,
        "num_segments": None if palette is None else palette.num_segments,
        "domains": {} if palette is None else palette.domains,
    }


def _told_from_an_id(name: str | None) -> str | None:
    """`./folder` for a relative folder: it may be gone when a card asks whether the name is that of a repository."""
    if not isinstance(name, str) or not Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."):
        return name
    return f"./{name}"


def _is_palette(palette: Any) -> bool:
    # The class of a palette that came with a checkpoint's remote code is not this module's.
    return isinstance(palette, PaletteVAE) or type(palette).__name__ == PaletteVAE.__name__
