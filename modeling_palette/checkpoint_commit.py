"""One commit that puts a checkpoint into a repository: whoever reads it finds the state before or the one after."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from .configuration_palette import PaletteConfig
from .palette_card import hub_name

# What a checkpoint of another kind or in other shards may have left, and would be read in place of this one.
SUPERSEDED = re.compile(
    r"(palette|model|model-\d{5}-of-\d{5})\.safetensors|model\.safetensors\.index\.json|custom_generate/generate\.py"
)


def commit_checkpoint(
    repo_id: str,
    files: Mapping[str, str | Path],
    *,
    commit_message: str,
    commit_description: str | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Commit files of a checkpoint, and the removal of weights that they supersede.

    Args:
        repo_id (`str`): The repository.
        files (`dict[str, str or Path]`): Path in the repository -> file. Where a `config.json` is among them, they are
            a whole checkpoint, and what is left of another one (`SUPERSEDED`) is removed.
        commit_message, commit_description, token, revision, create_pr: As in `HfApi.create_commit`.

    Returns:
        `CommitInfo`: The commit.

    Raises:
        HfHubHTTPError: if the Hub refuses.

    Warns:
        if there is an adapter, or a palette without its base, on a model that is a folder of this machine: what is
        published does not name it, here or in a full checkpoint.
    """
    api = HfApi()
    there = api.list_repo_files(repo_id, revision=revision, token=token) if CONFIG_NAME in files else []
    superseded = [name for name in there if SUPERSEDED.fullmatch(name) and name not in files]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in superseded]
    for name, path in sorted(files.items()):
        config = _config_on_folder(Path(path))
        if config is None:
            operations.append(CommitOperationAdd(name, path))
            continue
        base, is_adapter = config["base_model_name_or_path"], "peft_type" in config
        if is_adapter or config.get("palette_only"):
            what, where = ("adapter", "peft_config") if is_adapter else ("palette", "config")
            warnings.warn(
                f"The {what} is published without the name of its base: {base!r} is a folder of this machine, so "
                f"nobody can load the {what} by its own id alone. Publish that model too, set its id as "
                f"`base_model_name_or_path` of `model.{where}`, and push again.",
                stacklevel=4,
            )
        operations.append(CommitOperationAdd(name, _without_base(config)))
    # Not `upload_folder`, which since huggingface_hub 2 commits what it has every five minutes, or 250 files.
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )


def _config_on_folder(path: Path) -> dict[str, Any] | None:
    """The config of a palette or adapter on a model that only this machine knows by its name; `None` for all else."""
    if path.name not in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    is_known = "peft_type" in config or config.get("model_type") == PaletteConfig.model_type
    return config if is_known and base and hub_name(base) is None else None


def _without_base(config: dict[str, Any]) -> bytes:
    unnamed = {**config, "base_model_name_or_path": None}
    if "base_model_revision" in config:
        unnamed["base_model_revision"] = None
    return (json.dumps(unnamed, indent=2, sort_keys=True) + "\n").encode()
