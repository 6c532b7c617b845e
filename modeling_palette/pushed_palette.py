"""`push_to_hub` of full and palette-only checkpoints, in one commit: a repository is as it was or as it shall be."""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import HfHubHTTPError

from .checkpoint_commit import commit_checkpoint
from .kept_card import copy_given, put_card


class PaletteHubMixin:
    """Uploads palette models; what is uploaded is what `save_pretrained` writes."""

    config: Any
    model_tags: Any
    save_pretrained: Any
    # For trainers, which may know this code by a model of it alone.
    commit_checkpoint = staticmethod(commit_checkpoint)

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
        card: str | Path | None = None,
    ) -> CommitInfo:
        r"""
        Publish the model: weights or palette, config, code, trainers, tokenizer and card, in one commit.

        An upload that is broken off leaves the repository as it was. Weights of an earlier checkpoint that this one
        does not overwrite are removed in the same commit; every other file of the repository stays. A base that is a
        folder of this machine is not named in what is published.

        Args:
            repo_id (`str`): The repository; made if it does not exist.
            palette_only (`bool`, *optional*, defaults to `False`): Publish the palette and the name of its base
                instead of the base's weights. The base must be on the Hub too for others to load it.
            commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: As in
                [`~transformers.utils.PushToHubMixin.push_to_hub`].
            card (`str` or `Path`, *optional*): A model card to publish in place of any other: a README.md, or a folder
                with one and with what it shows (images, results), which is uploaded beside it.

        Returns:
            `CommitInfo`: The commit.

        Raises:
            FileNotFoundError: if there is no card where `card` says.
            ValueError: as `save_pretrained` does, and if the folder of the card holds a file of the checkpoint. The
                repository is not made then.
            HfHubHTTPError: if the Hub refuses.

        Warns:
            if a palette is published alone whose base is a folder: nobody can load it by name.
        """
        # a palette is one file: `save_pretrained` refuses to be told how large it may be
        sharding = {} if palette_only and max_shard_size == "50GB" else {"max_shard_size": max_shard_size}
        with tempfile.TemporaryDirectory() as folder:
            # `token` also reads the trainers of a private repository that this model came from
            self.save_pretrained(folder, palette_only=palette_only, token=token, **sharding)
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
                card=card,
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
        card: str | Path | None = None,
    ) -> CommitInfo:
        """Commit `files` of a folder, or all of it, with a card."""
        folder = Path(folder)
        everything = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        names = set(everything if files is None else files)
        if card is not None:
            copy_given(card, folder)
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        given = [tags] if isinstance(tags, str) else list(tags or [])
        card_tags = list(dict.fromkeys([*(self.model_tags or []), *given]))
        names |= set(
            put_card(
                self,
                folder,
                repo_id,
                palette_only="palette.safetensors" in names,
                tags=card_tags,
                given=card,
                revision=revision,
                token=token,
            )
        )
        if revision is not None and not revision.startswith("refs/pr"):
            try:
                api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
            except HfHubHTTPError as error:
                # a pull request to another's repository needs no branch there
                if not (create_pr and error.response.status_code == 403):
                    raise
        name = type(self).__name__
        return commit_checkpoint(
            repo_id,
            {name: folder / name for name in names},
            commit_message=commit_message or f"Upload {'model' if 'Model' in name else name}",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
