"""What a checkpoint may name: files beside it, weights without code, a base that is none of its own kind.

Whoever wrote a checkpoint chose every name in it. transformers follows some of them to pickles, out of the folder, or
round in circles; each is checked here before it is followed.
"""

import json
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file, find_adapter_config_file

ADAPTER_FILE = "adapter_model.safetensors"
# No folder, no drive, and no other kind of file: transformers unpickles what does not end so.
_SHARD = re.compile(r"[^/\\:]+\.safetensors")
_WAY_OUT = "Weights are read from safetensors alone, since files of other kinds are pickles, which can hold code."
# Files that a checkpoint is made of, by their endings, and the folders of its code and of its tokenizer.
_WRITTEN = (".safetensors", ".json", ".py", ".md", ".jinja", ".model", ".txt")
_WRITTEN_FOLDERS = ("trainers", "custom_generate", "additional_chat_templates")
_OF_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


def shards_of_index(index: str | Path, name_or_path: str) -> dict[str, str]:
    """
    The weight map of a checkpoint in shards: tensor -> file.

    Raises:
        ValueError: if the index is no index, or names files elsewhere or of other kinds.
    """
    try:
        found = json.loads(Path(index).read_text(encoding="utf-8"))
        weight_map = found["weight_map"]
        files = set(weight_map.values())
        sound = isinstance(found["metadata"], dict) and all(isinstance(file, str) for file in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{Path(index).name} of {name_or_path!r} is damaged: {type(error).__name__}.") from error
    wrong = sorted(str(file) for file in files if not (isinstance(file, str) and _SHARD.fullmatch(file)))
    if wrong or not sound:
        raise ValueError(
            f"{Path(index).name} of {name_or_path!r} names {wrong[:1] or [found['metadata']]}, which is no "
            f"safetensors file beside it. {_WAY_OUT} Save the checkpoint again with `save_pretrained(folder)`."
        )
    return weight_map


def check_config_names(config: dict[str, Any], whose: str) -> None:
    """
    Refuse names in a config file that lead transformers to pickles or to code.

    Args:
        config (`dict`): The content of a `config.json`.
        whose (`str`): What it belongs to, for the message.

    Raises:
        ValueError: if it names a file of weights that is no safetensors beside it, or a kernel's repository.
    """
    weights = config.get("transformers_weights")
    if weights is not None and not _SHARD.fullmatch(str(weights).removesuffix(".index.json")):
        raise ValueError(f"The config of {whose} has transformers_weights={weights!r}. {_WAY_OUT}")
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        for value in _leaves(config.get(name)):
            if isinstance(value, str) and "/" in value:
                raise ValueError(
                    f"The config of {whose} has {name}={value!r}, a kernel's repository, which is code. Whoever loads "
                    f"the model chooses: pass `{name.lstrip('_')}` to `from_pretrained`."
                )


def check_named_base(name_or_path: str, revision: str | None, **location: Any) -> None:
    """
    Look at the config of the base that a palette-only checkpoint names, before the base is loaded.

    An adapter stands for the model that it names in turn, as in transformers.

    Args:
        name_or_path (`str`): Folder or Hub id.
        revision (`str`, *optional*): Its revision.
        **location: `token`, `cache_dir`, ... as `from_pretrained` takes them.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a palette itself, if adapters name each other in a circle, and as
            [`check_config_names`] does.
    """
    seen = [name_or_path]
    while True:
        adapter = find_adapter_config_file(name_or_path, revision=revision, **location)
        if adapter is None or (Path(name_or_path) / "config.json").is_file():
            break
        name_or_path = json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not isinstance(name_or_path, str) or name_or_path in seen:
            raise ValueError(
                f"The base {seen[0]!r} is an adapter that leads to no model, but to {[*seen[1:], name_or_path]}. Name "
                "the model itself in `base_model_name_or_path`."
            )
        seen.append(name_or_path)
        revision = None
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **location)
    if config.get("model_type") == "palette":
        raise ValueError(
            f"The base is {name_or_path!r}, which is a palette model itself. A palette stands on a plain model: set "
            "`base_model_name_or_path` in the config to that model's folder or Hub id, or put the palette on it with "
            "`from_base(base, palette=...)`."
        )
    check_config_names(config, f"the base {name_or_path!r}")


def explain_missing_safetensors(error: OSError, name_or_path: str) -> None:
    """
    Raises:
        OSError: with the way out, if that is what transformers' error says of a base.
    """
    if re.search(r"no file named \S*safetensors|cannot be loaded with `safetensors`", str(error)):
        raise OSError(
            f"The base {name_or_path!r} has no weights in safetensors. {_WAY_OUT} If you trust that base, pass "
            "`use_safetensors=False` (to a trainer, in `model_init_kwargs`): transformers then unpickles its weights."
        ) from error


def check_adapter(name_or_path: str, **location: Any) -> None:
    """
    Raises:
        OSError: if an adapter has no safetensors file; transformers would unpickle `adapter_model.bin`.
    """
    found = cached_file(name_or_path, ADAPTER_FILE, _raise_exceptions_for_missing_entries=False, **location)
    if found is None:
        raise OSError(
            f"The adapter {name_or_path!r} has no {ADAPTER_FILE}. {_WAY_OUT} Load it with PEFT where you trust it, "
            "and save it again with `save_pretrained(folder)`."
        )


def check_links(folder: str | Path) -> None:
    """
    Raises:
        ValueError: if a file that a checkpoint may write is a link: what it points to would be overwritten.
    """
    folder = Path(folder)
    paths = [path for path in (folder, *(folder / name for name in _WRITTEN_FOLDERS)) if path.is_dir()]
    files = [path for parent in paths for path in parent.iterdir() if path.suffix in _WRITTEN]
    for path in (*paths[1:], *files):
        if path.is_symlink():
            raise ValueError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, which saving would write to. Remove the link, "
                "or save to an empty folder."
            )


def check_no_weights(folder: str | Path) -> None:
    """
    Raises:
        ValueError: if a folder holds the weights of a model, which a palette-only checkpoint would leave there under
            a config that is not theirs.
    """
    found = sorted(path.name for pattern in _OF_WEIGHTS for path in Path(folder).glob(pattern))
    if found:
        raise ValueError(
            f"`save_directory`={str(folder)!r} holds the weights of a model ({found[0]}), and a palette-only "
            "checkpoint would replace their config. Save to another folder, or remove them first."
        )


def _leaves(value: Any) -> list[Any]:
    return [leaf for each in value.values() for leaf in _leaves(each)] if isinstance(value, dict) else [value]
