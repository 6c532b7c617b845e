"""What a training pushes to the Hub: whole checkpoints, each in one commit.

transformers 5.24 pushes a training's output folder. In the middle of a training it puts weights and config there and
nothing else, so that the repository of a palette model lacks its code until the end; a save at the end overwrites what
is still being uploaded; and what an earlier checkpoint of another kind has left in the repository stays. A folder of
more than 250 files, such as one with a table of completions for every step, is committed in pieces.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from .whole_checkpoints import TRAINER_STATE

# A pickle of the arguments: with the Hub's token, if it was given there, and paths of this machine. Nothing reads it.
TRAINING_ARGUMENTS = "training_args.bin"
NOT_PUSHED = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*", TRAINING_ARGUMENTS, f"*/{TRAINING_ARGUMENTS}")
# Of a training's checkpoint, what is the model's; the rest is the training's own.
_OF_MODEL = (".json", ".safetensors", ".py", ".jinja", ".txt", ".model")
_FOLDERS_OF_MODEL = ("", "trainers", "custom_generate", "palette", "palette/trainers", "palette/custom_generate")
_OF_TRAINING = (TRAINER_STATE, "zero_to_fp32.py")


class HubPushMixin:
    """
    Mixed in front of a transformers trainer. Overrides `push_to_hub`, `_push_from_checkpoint` and
    `_finish_current_push`: everything is pushed that a reader needs, in one commit, and a push in the background that
    failed is told of. Left out are `training_args.bin`, and names of folders of this machine in a palette's config.
    """

    args: Any
    state: Any
    model: Any
    control: Any
    callback_handler: Any
    processing_class: Any
    hub_model_id: Any
    push_in_progress: Any
    is_world_process_zero: Any

    def _commit_function(self) -> Callable[..., Any] | None:
        """`commit_checkpoint` of the trained palette; `None` where there is none, to push as transformers does."""
        raise NotImplementedError

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer.push_to_hub`, in one commit."""
        trainer: Any = self
        self._finish_current_push()  # what is being uploaded must not be overwritten by the save
        commit = self._commit_function()
        is_private = {} if private is None else {"private": private}  # transformers 5.19 has no such argument
        if commit is None:
            return super().push_to_hub(commit_message, blocking, token, revision, **is_private, **kwargs)  # type: ignore[misc]
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            trainer.init_hf_repo(token=token, **is_private)
        trainer.save_model(_internal_call=True)
        if not trainer.is_world_process_zero():
            return None
        name = self.args.hub_model_id or os.path.abspath(self.args.output_dir)
        kwargs["model_name"] = kwargs.get("model_name") or os.path.basename(name)
        tags = kwargs.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(getattr(self.model, "model_tags", None) or [])]
        trainer.create_model_card(**kwargs, **({"tags": list(dict.fromkeys(tags))} if tags else {}))
        return self._commit(
            commit,
            files_to_push(self.args.output_dir),
            commit_message or "End of training",
            token=token,
            revision=revision if revision is not None else self.args.hub_revision,
            blocking=blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        commit = self._commit_function()
        if commit is None:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]
            return
        strategy, folder = self.args.hub_strategy, self.args.output_dir
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # From there, as transformers does: a checkpoint may be rotated away while it is being uploaded.
        for name in _files_of_model(checkpoint_folder):
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            shutil.copyfile(os.path.join(checkpoint_folder, name), os.path.join(folder, name))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        files = files_to_push(folder)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            under = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else os.path.basename(checkpoint_folder)
            files |= {f"{under}/{name}": path for name, path in files_to_push(checkpoint_folder).items()}
        is_by_step = self.args.save_strategy == SaveStrategy.STEPS
        at = f"step {self.state.global_step}" if is_by_step else f"epoch {int(self.state.epoch)}"
        token, revision = self.args.hub_token, self.args.hub_revision
        message = f"Training in progress, {at}"
        job = self._commit(commit, files, message, token=token, revision=revision, blocking=False)
        self.push_in_progress = PushInProgress([job])

    def _commit(
        self,
        commit: Callable[..., Any],
        files: dict[str, str],
        message: str,
        *,
        token: str | None,
        revision: str | None,
        blocking: bool,
    ) -> Any:
        call = {"commit_message": message, "token": token, "revision": revision}
        if blocking:
            return commit(self.hub_model_id, files, **call)
        return HfApi().run_as_future(commit, self.hub_model_id, files, **call)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()  # type: ignore[misc]
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", None) or []
        for error in filter(None, (job.exception() for job in jobs if job.done() and not job.cancelled())):
            warnings.warn(
                f"A push during the training failed, and {self.hub_model_id} stayed as it was: "
                f"{type(error).__name__}: {error} `trainer.push_to_hub()` pushes what there is now.",
                stacklevel=2,
            )
        if jobs:
            self.push_in_progress = None


def files_to_push(folder: str) -> dict[str, str]:
    """
    Args:
        folder (`str`): The output folder of a training.

    Returns:
        `dict[str, str]`: Path in the repository -> file, for all that is pushed of it.
    """
    names = [
        os.path.relpath(os.path.join(parent, name), folder).replace(os.path.sep, "/")
        for parent, _, found in os.walk(folder)
        for name in found
    ]
    kept = filter_repo_objects(names, ignore_patterns=[*NOT_PUSHED, *DEFAULT_IGNORE_PATTERNS])
    return {name: os.path.join(folder, name) for name in sorted(kept)}


def _files_of_model(checkpoint: str) -> list[str]:
    found = [name for name in files_to_push(checkpoint) if name.endswith(_OF_MODEL) and name not in _OF_TRAINING]
    return [name for name in found if os.path.dirname(name) in _FOLDERS_OF_MODEL]
