"""Resuming: from a checkpoint that a killed process left, in a later epoch, and between generations."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import kill_and_resume
import pytest
from trainer_testing import (
    assert_same_weights,
    common_arguments,
    record_generations,
    rl_dataset,
    sft_dataset,
    tiny_base,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)
from reasoning_palette.trainers.whole_checkpoints import is_whole, last_whole_checkpoint

ROLLOUTS = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "beta": 0.0}
SAVING = {"save_strategy": "steps", "save_steps": 1}


def sft_trainer(folder, dataset=None, **arguments):
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, **SAVING, **arguments}
    return PaletteSFTTrainer(
        tiny_palette_model(),
        PaletteSFTConfig(**common_arguments(folder, **settings)),
        train_dataset=sft_dataset() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


def rollout_trainer(trainer_class, config_class, folder, model=None, num_prompts=16, **arguments):
    return trainer_class(
        tiny_palette_model() if model is None else model,
        word_reward,
        args=config_class(**common_arguments(folder, **ROLLOUTS, **SAVING, **arguments)),
        train_dataset=rl_dataset(num_prompts),
        processing_class=tiny_tokenizer(),
    )


def grpo_trainer(folder, **arguments):
    return rollout_trainer(PaletteGRPOTrainer, PaletteGRPOConfig, folder, **{"num_prefix_tokens": 3, **arguments})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished SFT run with checkpoints 1, 2 and 3; not to be changed."""
    trainer = sft_trainer(tmp_path_factory.mktemp("finished"))
    trainer.train()
    return trainer


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run's folder."""
    shutil.copytree(finished.args.output_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("half_written", [True, False])
def test_torn_checkpoint_is_passed_over(finished, copied, by_name, half_written):
    state = copied / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text()[: 100 if half_written else 0])
    if not half_written:
        state.unlink()
    assert get_last_checkpoint(copied) == str(copied / "checkpoint-3")
    assert last_whole_checkpoint(str(copied)) == str(copied / "checkpoint-2")
    trainer = sft_trainer(copied)
    with pytest.warns(UserWarning, match=r"checkpoint-3' is torn.* Resuming from '.*checkpoint-2'"):
        trainer.train(resume_from_checkpoint=get_last_checkpoint(copied) if by_name else True)
    assert_same_weights(trainer.model, finished.model)
    assert is_whole(str(copied / "checkpoint-3"))


def test_run_without_a_whole_checkpoint_starts_over(finished, copied):
    for step in (1, 2, 3):
        (copied / f"checkpoint-{step}" / "trainer_state.json").unlink()
    trainer = sft_trainer(copied)
    with pytest.warns(UserWarning, match="There is no other: training starts from the beginning"):
        trainer.train(resume_from_checkpoint=True)
    assert_same_weights(trainer.model, finished.model)


def test_what_is_not_a_torn_checkpoint_of_this_run_is_left_to_transformers(finished, copied, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is torn")
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        for name in ("checkpoint-3", "model"):  # without a trainer state, of another run or of none
            shutil.copytree(copied / "checkpoint-3", elsewhere / name)
            (elsewhere / name / "trainer_state.json").unlink()
            with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
                sft_trainer(copied).train(resume_from_checkpoint=str(elsewhere / name))
        with pytest.raises(ValueError, match="No valid checkpoint found"):
            sft_trainer(tmp_path_factory.mktemp("empty")).train(resume_from_checkpoint=True)


def test_finished_run_has_nothing_left_to_do(finished, copied):
    trainer = sft_trainer(copied, lr_scheduler_type="constant")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert_same_weights(trainer.model, finished.model)


def test_checkpoint_that_is_being_overwritten_is_torn(copied):
    class KilledError(Exception):
        pass

    trainer = sft_trainer(copied)

    def die(output_dir):
        raise KilledError

    trainer._save_optimizer_and_scheduler = die
    with pytest.raises(KilledError):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-1"))
    assert [is_whole(str(copied / f"checkpoint-{step}")) for step in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "settings"),
    [
        (PaletteGRPOTrainer, PaletteGRPOConfig, {}),
        (PaletteGRPOTrainer, PaletteGRPOConfig, {"steps_per_generation": 2}),
        (PaletteGRPOTrainer, PaletteGRPOConfig, {"num_iterations": 2}),
        (PaletteRLOOTrainer, PaletteRLOOConfig, {}),
    ],
)
def test_later_epochs_go_on_in_their_own_order(tmp_path, trainer_class, config_class, settings):
    """TRL 1.16 alone starts over with the first epoch's order."""
    steps_per_generation = 2 if settings else 1
    arguments = {"num_prompts": 8, "max_steps": 6 * steps_per_generation, "num_prefix_tokens": 3, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checkpoints between generations; those are not resumed from here
        unbroken = rollout_trainer(trainer_class, config_class, tmp_path / "a", **arguments)
        resumed = rollout_trainer(trainer_class, config_class, tmp_path / "b", **arguments)
    generations, again = record_generations(unbroken), record_generations(resumed)
    unbroken.train()
    assert unbroken.state.epoch > 1
    last = 5 * steps_per_generation  # in the second epoch: 8 prompts are four generations, or two of twice the size
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{last}"))
    assert again == [generation for generation in generations if generation[1] >= last]
    assert_same_weights(unbroken.model, resumed.model)


@pytest.mark.parametrize("endless", [False, True])
def test_streams_go_on_where_they_were_in_their_first_pass(tmp_path, endless):
    stream = sft_dataset(8).to_iterable_dataset()  # a pass has two steps
    unbroken, resumed = (
        sft_trainer(tmp_path / name, stream.repeat(None) if endless else stream, max_steps=5) for name in "ab"
    )
    unbroken.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    warned = any("later pass over a streaming dataset" in str(warning.message) for warning in caught)
    assert warned != endless
    if endless:
        assert_same_weights(unbroken.model, resumed.model)


@pytest.mark.parametrize("settings", [{"num_iterations": 2}, {"steps_per_generation": 2}])
def test_between_generations_a_resumed_run_is_stocks(tmp_path, settings):
    """There the rollouts are lost, with TRL as here: without guidance both go on alike, with it at the same steps."""
    arguments = {"max_steps": 6, **settings}
    stock = []
    for resume in (None, str(tmp_path / "stock" / "checkpoint-3")):
        stock.append(rollout_trainer(GRPOTrainer, GRPOConfig, tmp_path / "stock", tiny_base(), **arguments))
        generations = record_generations(stock[-1])
        stock[-1].train(resume_from_checkpoint=resume)
    for guidance in ({"latent_fraction": 0.0}, {"latent_schedule": "constant"}):
        with pytest.warns(UserWarning, match="fall between generations"):
            resumed = grpo_trainer(tmp_path / "ours", **arguments, **guidance)
        mine = record_generations(resumed)
        if "latent_fraction" in guidance:
            resumed.train(resume_from_checkpoint=str(tmp_path / "stock" / "checkpoint-3"))
            assert_same_weights(stock[1].model, resumed.model)
            assert mine == generations
        else:
            resumed.train()
            mine.clear()
            resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-3"))
            assert [step for _, step, _ in mine] == [step for _, step, _ in generations]
        assert resumed.state.global_step == 6


def test_killed_runs_end_with_the_weights_of_the_unbroken_run():
    """SIGKILL to each trainer in the middle of a checkpoint. At random moments, and often, the script does it."""
    command = [sys.executable, kill_and_resume.__file__, "--kills", "0", "--die_at", "trainer_state.json"]
    completed = subprocess.run(
        [*command, "--steps", "6", "--runs", "sft-posterior", "grpo", "rloo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(kill_and_resume.__file__).parent,
        timeout=240,
    )
    assert completed.returncode == 0, completed.stdout[-6000:]
    assert "3/3 resumed runs ended with the weights of the unbroken run, bit for bit." in completed.stdout
    assert completed.stdout.count('"last": "checkpoint-4", "torn": true') == 3
