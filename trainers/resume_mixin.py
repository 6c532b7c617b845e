"""Runs that may be killed at any moment, and go on from their last checkpoint as if nothing had happened."""

import contextlib
import os
import warnings
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, has_length

from .converted_weights import load_converted, needs_conversion
from .whole_checkpoints import TRAINER_STATE, checkpoint_step, is_whole, last_whole_checkpoint, trainer_state


class ResumeMixin:
    """
    Mixed in front of a transformers trainer. Overrides `train` (a half-written checkpoint is passed over),
    `_save_checkpoint` and `_save_rng_state` (so that one can be told from a whole one, see `whole_checkpoints`),
    `_load_from_checkpoint` and `_load_best_model` (weights have other names in the files of some families, see
    `converted_weights`), and `_run_epoch` (a run that was killed after its last checkpoint has nothing left to do).
    """

    args: Any
    accelerator: Any
    state: Any
    control: Any
    train_dataset: Any

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        As transformers' `Trainer.train`. A checkpoint that a killed process left half-written is not resumed from: the
        last whole one before it is, with a warning, or training starts over where this run has none.
        """
        if resume_from_checkpoint:
            # One process decides for all: they must not start from different checkpoints.
            is_main = self.accelerator.is_main_process
            chosen = [self._checkpoint_to_resume(resume_from_checkpoint) if is_main else None]
            resume_from_checkpoint = broadcast_object_list(chosen)[0]
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _checkpoint_to_resume(self, asked_for: str | bool) -> str | bool | None:
        run, named = self.args.output_dir, asked_for
        if asked_for is True and os.path.isdir(run):
            named = get_last_checkpoint(run) or True
        if not isinstance(named, str) or not os.path.isdir(named):
            return asked_for  # for transformers to refuse
        chosen = named if is_whole(named) or checkpoint_step(named) is None else self._whole_checkpoint_before(named)
        state = trainer_state(chosen) if chosen else None
        if state is not None and (state.get("epoch") or 0) >= 1 and not has_length(self.train_dataset):
            warnings.warn(
                "The run that is resumed was in a later pass over a streaming dataset. transformers does not restore "
                "the place in it, so the resumed run reads other rows than an unbroken one. Make the stream endless "
                "(`dataset.repeat(None)`), or use a dataset that is not streamed, for exact resuming.",
                stacklevel=3,
            )
        return chosen

    def _whole_checkpoint_before(self, torn: str) -> str | None:
        folder = os.path.dirname(os.path.normpath(torn))
        whole = last_whole_checkpoint(folder, before=checkpoint_step(torn))
        if whole is None and os.path.realpath(folder) != os.path.realpath(self.args.output_dir):
            return torn  # not of this run: for transformers to refuse
        going_on = f"Resuming from {whole!r}." if whole else "There is no other: training starts from the beginning."
        warnings.warn(
            f"The checkpoint {torn!r} is torn: `{TRAINER_STATE}`, which is written last, is missing or incomplete in "
            f"it, so the process that wrote it was killed on the way. {going_on}",
            stacklevel=4,
        )
        return whole

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        into = self.model if model is None else model  # type: ignore[attr-defined]
        if self._reads_whole_files() and needs_conversion(into, resume_from_checkpoint):
            load_converted(into, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        best, model = self.state.best_model_checkpoint, self.model  # type: ignore[attr-defined]
        if self._reads_whole_files() and needs_conversion(model, best):
            load_converted(model, best)
        else:
            super()._load_best_model()  # type: ignore[misc]

    def _reads_whole_files(self) -> bool:
        """Whether every process loads whole files: FSDP and DeepSpeed have checkpoints of their own."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)  # type: ignore[attr-defined]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers 5.24 compares with `max_steps` after a step only, and would train on.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Where a checkpoint of the same step lies already (a run resumed from an earlier one), its trainer state must
        # not vouch for files that are being overwritten.
        if self.args.should_save:
            run = self._get_output_dir(trial=trial)  # type: ignore[attr-defined]
            checkpoint = os.path.join(run, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(checkpoint, TRAINER_STATE))
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        # The trainer state comes next, written by one process: not before all have written what is theirs.
        self.accelerator.wait_for_everyone()
