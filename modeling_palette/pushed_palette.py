"""`push_to_hub` of full and palette-only checkpoints, in one commit: a repository is as it was or as it shall be."""

import glob
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import HfHubHTTPError
from transformers.utils.hub import create_and_tag_model_card

# What a checkpoint of another kind or in other shards may have left, and would be read in place of this one.
SUPERSEDED = (
    "custom_generate/generate.py",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "palette.safetensors",
)


class PaletteHubMixin:
    """Uploads palette models; what is uploaded is what `save_pretrained` writes."""

    model_tags: Any
    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        palette_only: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: str | list[str] | None = None,
    ) -> CommitInfo:
        r"""
        Publish the model: weights or palette, config, code, trainers, tokenizer and card, in one commit.

        An upload that is broken off leaves the repository as it was. Weights of an earlier checkpoint that this one
        does not overwrite are removed in the same commit (`SUPERSEDED`); every other file of the repository stays.

        Args:
            repo_id (`str`): The repository; made if it does not exist.
            palette_only (`bool`, *optional*, defaults to `False`): Publish the palette and the name of its base
                instead of the base's weights. The base must be on the Hub too for others to load it.
            commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: As in
                [`~transformers.utils.PushToHubMixin.push_to_hub`].

        Returns:
            `CommitInfo`: The commit.

        Raises:
            ValueError: as `save_pretrained` does; the repository is not made then.
            HfHubHTTPError: if the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            # `token` also reads the trainers of a private repository that this model came from
            self.save_pretrained(folder, palette_only=palette_only, max_shard_size=max_shard_size, token=token)
            return self._upload(
                folder,
                repo_id,
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )

    def _upload(
        self,
        folder: str | Path,
        repo_id: str,
        files: list[str] | None = None,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | list[str] | None = None,
    ) -> CommitInfo:
        """Commit `files` of a folder, or all of it, with a card."""
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        given = [tags] if isinstance(tags, str) else list(tags or [])
        card_tags = list(dict.fromkeys([*(self.model_tags or []), *given]))
        card = create_and_tag_model_card(repo_id, card_tags or None, token=token)
        card.save(Path(folder) / "README.md")
        if revision is not None and not revision.startswith("refs/pr"):
            try:
                api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
            except HfHubHTTPError as error:
                if not (
                    create_pr and error.response.status_code == 403
                ):  # a pull request needs no branch of one's own
                    raise
        name = type(self).__name__
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=None if files is None else [glob.escape(file) for file in {*files, "README.md"}],
            delete_patterns=list(SUPERSEDED),
            commit_message=commit_message or f"Upload {'model' if 'Model' in name else name}",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
