"""One commit that puts a checkpoint into a repository: whoever reads it finds the state before or the one after."""

import json
import re
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
    """
    api = HfApi()
    there = api.list_repo_files(repo_id, revision=revision, token=token) if CONFIG_NAME in files else []
    superseded = [name for name in there if SUPERSEDED.fullmatch(name) and name not in files]
    # Not `upload_folder`, which since huggingface_hub 2 commits what it has every five minutes, or 250 files.
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, _published(Path(path))) for name, path in sorted(files.items())),
            *(CommitOperationDelete(name) for name in superseded),
        ],
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )


def _published(path: Path) -> Path | bytes:
    """A file as it is published: a palette's config without the name of a base that only this machine knows."""
    if path.name != CONFIG_NAME:
        return path
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if config.get("model_type") != PaletteConfig.model_type or base is None or hub_name(base) is not None:
        return path
    config |= {"base_model_name_or_path": None, "base_model_revision": None}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
