"""`PaletteForCausalLM`: a palette on any causal language model of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

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
from .trace_pooling import Trace, pool_traces
from .unverified_bases import check_unverified
from .wrapped_base import palette_class, share_modules


class PaletteForCausalLM(PaletteCheckpointMixin):
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
            source, base = str(base), AutoModelForCausalLM.from_pretrained(base, **kwargs)
            # the commit, where it is known: the palette belongs to these weights, not to what a branch holds later
            fields.setdefault("base_model_revision", loaded_commit(source, **kwargs) or kwargs.get("revision"))
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
        if palette is not None and not is_verified(type(base), base.config.model_type):
            check_unverified(base, config.latent_id_base)
        return share_modules(base, palette_class(type(base), cls), config, palette, tokenizer)

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer, or `None`. Looked for once, where the model came from."""
        if not self._looked_for_tokenizer:
            self._looked_for_tokenizer = True
            own = {name: value for name, value in self._location.items() if name != "force_download"}
            of_base = {name: own[name] for name in own if name not in ("revision", "subfolder")}
            of_base["revision"] = self.config.base_model_revision or "main"
            sources = (self.config.name_or_path, own), (self.config.base_model_name_or_path, of_base)
            for source, location in sources:
                if source:
                    try:
                        # With the base's config at hand, no config (and so no code) of that source is looked for.
                        self._tokenizer = AutoTokenizer.from_pretrained(
                            source, config=self.config.base_config, trust_remote_code=False, **location
                        )
                        break
                    # that source has no tokenizer, or one whose own library is not installed
                    except (OSError, ValueError, KeyError, TypeError, ImportError):
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
        classes = (PaletteForCausalLM, *PaletteForCausalLM.__subclasses__())
        AutoModelForCausalLM.register(PaletteConfig, classes, exist_ok=True)
        base_config = self.config
        config._attn_implementation_internal = base_config._attn_implementation
        config._experts_implementation_internal = getattr(base_config, "_experts_implementation", None)
        config.__dict__["base_config"] = base_config  # the very object that the base's layers read
        self.config = config
        self.name_or_path = config.name_or_path
        self._location = CheckpointLocation()
        self._tokenizer, self._looked_for_tokenizer = None, False
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


def _is_palette(palette: Any) -> bool:
    # The class of a palette that came with a checkpoint's remote code is not this module's.
    return isinstance(palette, PaletteVAE) or type(palette).__name__ == PaletteVAE.__name__


def __getattr__(name: str) -> Any:
    """`PaletteQwen3ForCausalLM` and its like, which unpickling looks for in this module."""
    base_class = getattr(transformers, name.removeprefix("Palette"), None) if name.startswith("Palette") else None
    if not isinstance(base_class, type) or not issubclass(base_class, PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return palette_class(base_class, PaletteForCausalLM)
