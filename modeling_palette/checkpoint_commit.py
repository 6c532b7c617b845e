"""One commit that puts a checkpoint into a repository: whoever reads it finds the state before or the one after."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import CONFIG_NAME

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
        if there is a palette without its base whose base is a folder of this machine: what is published does not name
        it, here or in a full checkpoint.
    """
    api = HfApi()
    there = api.list_repo_files(repo_id, revision=revision, token=token) if CONFIG_NAME in files else []
    superseded = [name for name in there if SUPERSEDED.fullmatch(name) and name not in files]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in superseded]
    for name, path in sorted(files.items()):
        config = _config_on_folder(Path(path))
        if config is not None and config.get("palette_only"):
            warnings.warn(
                f"The palette is published without the name of its base: {config['base_model_name_or_path']!r} is a "
                "folder of this machine, so nobody can load the palette by its own id alone. Publish the base too, "
                "set `model.config.base_model_name_or_path` to its id, and push again.",
                stacklevel=4,
            )
        operations.append(CommitOperationAdd(name, path if config is None else _without_base(config)))
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
    """The config of a palette on a base that only this machine knows by its name; `None` for every other file."""
    if path.name != CONFIG_NAME:
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    is_folder = config.get("model_type") == PaletteConfig.model_type and base is not None and hub_name(base) is None
    return config if is_folder else None


def _without_base(config: dict[str, Any]) -> bytes:
    unnamed = {**config, "base_model_name_or_path": None, "base_model_revision": None}
    return (json.dumps(unnamed, indent=2, sort_keys=True) + "\n").encode()
