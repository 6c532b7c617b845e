"""Palette models on disk: `from_pretrained` and `save_pretrained` of full and of palette-only checkpoints."""

import copy
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from .base_kinds import check_kind
from .checked_tensors import check_finite, check_weights
from .checkpoint_guards import (
    check_adapter,
    check_links,
    check_named_base,
    check_no_weights,
    explain_missing_safetensors,
)
from .checkpoint_palette import (
    LOCATION_ARGUMENTS,
    CheckpointLocation,
    load_palette,
    loaded_commit,
    save_palette,
)
from .configuration_palette import PaletteConfig
from .generation_palette import PaletteGenerationMixin
from .palette_card import hub_name
from .pushed_palette import PaletteHubMixin
from .shipped_code import copy_code, copy_custom_generate
from .supported_bases import check_base, class_of_base, is_verified
from .unverified_bases import check_unverified
from .wrapped_base import palette_class, share_modules


class PaletteCheckpointMixin(PaletteHubMixin, PaletteGenerationMixin):
    """Loads and saves palette models; the files themselves are `checkpoint_palette`'s and `shipped_code`'s."""

    _location: CheckpointLocation
    base_class: Any
    _processing: Any
    _auto_model_class: Any
    generation_config: Any

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
            OSError: if there are no weights in safetensors, or no base where the checkpoint says.
            ValueError: if the checkpoint is not a palette's, if its palette is incomplete, does not fit its config or
                is not finite, or if it leads to other files, to code or to another palette (docs/security.md).
        """
        location = CheckpointLocation(
            {name: kwargs[name] for name in LOCATION_ARGUMENTS if kwargs.get(name) is not None}
        )
        commit = None
        if config is None:
            found, _ = PaletteConfig.get_config_dict(pretrained_model_name_or_path, **location)
            # what is looked at is what is loaded, without asking the Hub again
            commit = loaded_commit(pretrained_model_name_or_path, **location)
            if found.get("model_type") != PaletteConfig.model_type:
                raise ValueError(
                    f"{pretrained_model_name_or_path!r} is a {found.get('model_type')!r} checkpoint, not a palette's. "
                    f"Put a palette on it with `{cls._wrapper().__name__}.from_base(base, palette=...)`."
                )
            if found.get("palette_only"):
                # Beside our fields, kwargs speak of the load of the base (dtype, attn_implementation, ...).
                fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PaletteConfig.__annotations__}
                config = PaletteConfig.from_pretrained(pretrained_model_name_or_path, **location, **fields)
            else:
                # dtype="auto" is no dtype of a config: it speaks of the weights, as it does to transformers' loader.
                dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
                config, kwargs = PaletteConfig.from_pretrained(
                    pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
                )
                kwargs.update(location, **dtypes)
        elif isinstance(config, str | Path):
            config = PaletteConfig.from_pretrained(config)
        what = f"The base of {str(pretrained_model_name_or_path)!r} ({config.base_config.model_type!r})"
        check_kind(type(config.base_config), cls._wrapper().__name__, what)
        if config.palette_only:
            return cls._from_palette_only(
                pretrained_model_name_or_path, config, location, base_trust_remote_code, *model_args, **kwargs
            )
        base_class = class_of_base(config)
        if pretrained_model_name_or_path is not None:  # else the caller has the weights already
            if kwargs.get("use_safetensors") is False:
                raise ValueError(
                    "`use_safetensors`=False asks for weights that are pickles, which can hold code. Palette models "
                    "are read from safetensors alone: leave it out."
                )
            kwargs["use_safetensors"] = True
            if commit is not None:
                kwargs["revision"] = commit
            where = {name: kwargs[name] for name in LOCATION_ARGUMENTS if kwargs.get(name) is not None}
            check_weights(str(pretrained_model_name_or_path), config, kwargs.get("variant"), **where)
            kwargs.pop("force_download", None)  # done
        loader = super(PaletteCheckpointMixin, palette_class(base_class, cls._wrapper())).from_pretrained
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
        model._location = location
        if model.palette is not None:
            check_finite(model.palette.named_buffers(), str(pretrained_model_name_or_path))
        if model.palette is not None and not is_verified(base_class, config.base_config.model_type):
            check_unverified(model, config.latent_id_base)
        return (model, info) if wants_info else model

    @classmethod
    def _from_palette_only(
        cls,
        name_or_path: str,
        config: PaletteConfig,
        location: CheckpointLocation,
        base_trust_remote_code: bool,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        name_or_path = str(name_or_path)
        palette, config = load_palette(name_or_path, config, **location)
        if config.base_model_name_or_path is None:
            raise ValueError(
                f"The palette-only checkpoint {name_or_path!r} does not say which base it belongs to. Load it with "
                f"`{cls._wrapper().__name__}.from_base(base, palette=...)`."
            )
        if hub_name(config.base_model_name_or_path) is None and not Path(config.base_model_name_or_path).is_dir():
            raise OSError(
                f"The palette-only checkpoint {name_or_path!r} names {config.base_model_name_or_path!r} as its base, "
                "which is no folder of this machine and no Hub id. Load it on a copy of the base with "
                f"`{cls._wrapper().__name__}.from_base(base, palette=...)`."
            )
        # What belongs to the palette's repo must not reach the load of the base: the base has its own revision and
        # subfolder, and trust in one repo is no trust in the other.
        adapter = dict(kwargs.pop("adapter_kwargs", None) or {})
        for name in ("revision", "subfolder", "trust_remote_code", "_from_auto", "_from_pipeline"):
            kwargs.pop(name, None)
        wants_info = kwargs.pop("output_loading_info", False)
        where = {name: kwargs[name] for name in LOCATION_ARGUMENTS if kwargs.get(name) is not None}
        check_named_base(config.base_model_name_or_path, config.base_model_revision, **where)
        kwargs.setdefault("use_safetensors", True)
        if config._attn_implementation is not None:  # given to an auto class, which has put it into the config
            kwargs.setdefault("attn_implementation", config._attn_implementation)
        try:
            base, info = cls._load_base(
                config.base_model_name_or_path,
                *model_args,
                revision=config.base_model_revision or "main",
                trust_remote_code=base_trust_remote_code,
                output_loading_info=True,
                **kwargs,
            )
        except OSError as error:
            explain_missing_safetensors(error, config.base_model_name_or_path)
            raise
        check_base(base, cls._wrapper().__name__)
        if not is_verified(type(base), base.config.model_type):
            check_unverified(base, config.latent_id_base)
        # the checkpoint's own word for the vocabulary was its author's
        config.latent_codes.check_vocabulary(getattr(base.config.get_text_config(), "vocab_size", None) or 0)
        palette_config = copy.deepcopy(config)
        palette_config._name_or_path = str(name_or_path)
        model = share_modules(base, palette_class(type(base), cls._wrapper()), palette_config, palette, None)
        model._location = location
        if "_adapter_model_path" in adapter:  # an auto class was given the id of an adapter on this checkpoint
            model.load_adapter(adapter.pop("_adapter_model_path"), adapter_kwargs=adapter)
        return (model, info) if wants_info else model

    @classmethod
    def _load_base(cls, name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Any:
        try:
            return cls._auto_model_class.from_pretrained(name_or_path, *model_args, **kwargs)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            config = AutoConfig.from_pretrained(name_or_path, **kwargs)
            what = f"The base {str(name_or_path)!r} is a {config.model_type!r} model, which"
            check_kind(type(config), cls._wrapper().__name__, what)
            raise

    @classmethod
    def _wrapper(cls) -> Any:
        """The public class, also when called on one of the classes built for a base."""
        return cls if cls.base_class is None else cls.__bases__[0]

    @classmethod
    def _from_config(cls, config: PaletteConfig, **kwargs: Any) -> Any:
        concrete = palette_class(class_of_base(config), cls._wrapper())
        return super(PaletteCheckpointMixin, concrete)._from_config(config, **kwargs)

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, from safetensors alone."""
        if peft_model_id is not None:
            of_model = getattr(kwargs.get("load_config"), "download_kwargs", None) or {}
            where = {**of_model, **(kwargs.get("adapter_kwargs") or {})}
            where |= {"local_files_only": True} if kwargs.get("local_files_only") else {}
            found = {name: where[name] for name in LOCATION_ARGUMENTS if where.get(name) is not None}
            check_adapter(str(peft_model_id), **found)
        return super().load_adapter(peft_model_id, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """No effect: the config's `auto_map` names every auto class, and `save_pretrained` copies the code."""

    def save_pretrained(
        self, save_directory: str | Path, palette_only: bool = False, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        r"""
        Write a checkpoint that `AutoModel.from_pretrained(folder, trust_remote_code=True)` and the auto class of the
        base load without this package.

        Args:
            save_directory (`str` or `Path`): The folder.
            palette_only (`bool`, *optional*, defaults to `False`): Write the palette and the name of its base instead
                of the base's weights.
            push_to_hub (`bool`, *optional*, defaults to `False`): Upload what was written afterwards, in one commit;
                see [`push_to_hub`](#push_to_hub), whose arguments are taken too.
            **kwargs: As `PreTrainedModel.save_pretrained` takes them.

        Raises:
            TypeError: if an argument of a push is given without `push_to_hub`, or one that palette-only saves lack.
            ValueError: if a palette-only checkpoint has no palette or does not know the name of its base, if it would
                stand beside the weights of a model, if a file of the folder is a link, or if the fields that give
                codes their meaning were changed on the live config.

        Warns:
            if a palette-only checkpoint is made of a model that was loaded from a full one, whose base may be trained,
                or of one with adapters.
        """
        of_push = [name for name in _PUSH_ARGUMENTS if name in kwargs and not push_to_hub]
        if of_push:
            raise TypeError(f"save_pretrained() got {of_push[0]!r}, which needs push_to_hub=True.")
        if palette_only:
            _refuse_arguments_of_weights(kwargs)
        self._sync_domains()
        self._check_frozen_layout()
        if getattr(self, "_hf_peft_config_loaded", False) and not palette_only:
            raise ValueError(
                "This model holds adapters from `add_adapter`, and transformers would save them alone: an adapter "
                "folder points to the raw base, and the palette would be lost. Save the palette model first and train "
                "the adapter with `peft.get_peft_model`, which saves it in a folder of its own."
            )
        if palette_only:
            self._require_palette()
            if self.config.base_model_name_or_path is None:
                raise ValueError(
                    "A palette-only checkpoint needs the name of its base, but this base was built in memory. Set "
                    "`model.config.base_model_name_or_path` to its folder or Hub id, or save a full checkpoint."
                )
            check_no_weights(save_directory)
            if self.config.name_or_path and not self.config.palette_only:
                warnings.warn(
                    f"This model was loaded from the full checkpoint {self.config.name_or_path!r}, whose base weights "
                    f"a palette-only one does not hold: it is loaded on {self.config.base_model_name_or_path!r}. Save "
                    "a full checkpoint if they were trained.",
                    stacklevel=2,
                )
            if getattr(self, "_hf_peft_config_loaded", False):
                warnings.warn(
                    "This model holds adapters, which a palette-only checkpoint does not: it is loaded on "
                    f"{self.config.base_model_name_or_path!r} without them. Save them in a folder of their own, for "
                    "`load_adapter`; or merge them with PEFT's `merge_and_unload`, save that base, and put the "
                    "palette on it.",
                    stacklevel=2,
                )
        is_main_process = kwargs.get("is_main_process", True)
        if is_main_process:
            check_links(save_directory)
        push = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if push_to_hub and name in kwargs}
        before = _modification_times(save_directory) if push_to_hub and is_main_process else {}
        replaces_palette = is_main_process and not palette_only and _is_palette_only(save_directory)
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
            token = kwargs.get("token")
            location = self._location | ({"token": token} if token else {})
            code = copy_code(save_directory, self.config.name_or_path, location)
            if palette_only:
                copy_custom_generate(save_directory)
            elif replaces_palette:  # engines would read them in place of this checkpoint
                for name in ("palette.safetensors", "custom_generate/generate.py"):
                    (Path(save_directory) / name).unlink(missing_ok=True)
            if self._processing is not None:
                self._processing.save_pretrained(save_directory)
            if push_to_hub:
                after = _modification_times(save_directory)
                repo_id = push.pop("repo_id", None) or Path(save_directory).name
                written = {name for name, time in after.items() if before.get(name) != time}
                # the folder that the model was loaded from has its code already, which is not written again
                self._upload(save_directory, repo_id, sorted(written.union(code)), **push, token=token)


def _refuse_arguments_of_weights(given: dict[str, Any]) -> None:
    """Refuse what transformers would read, and a palette-only checkpoint does not have."""
    known = inspect.signature(PreTrainedModel.save_pretrained).parameters
    for name, value in given.items():
        if name in (*_PUSH_ARGUMENTS, "is_main_process", "token"):
            continue
        if name not in known:
            raise TypeError(f"save_pretrained() got an unexpected keyword argument {name!r}")
        if value is not known[name].default and value != known[name].default:
            raise TypeError(
                f"save_pretrained() got {name!r}, which is for a model's weights, and palette_only=True, which writes "
                "none. Drop one of them."
            )


def _is_palette_only(folder: str | Path) -> bool:
    """Whether a folder holds a palette-only checkpoint; `False` for what a killed save has left of a config."""
    try:
        config = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
        return config.get("model_type") == PaletteConfig.model_type and bool(config.get("palette_only"))
    except (OSError, ValueError, AttributeError):
        return False


_PUSH_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "revision",
    "create_pr",
    "tags",
    "card",
)


def _modification_times(folder: str | Path) -> dict[str, int]:
    """Path of every file of a folder -> when it was last written, in nanoseconds."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}
