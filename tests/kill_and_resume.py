"""
Kills training runs with SIGKILL at random moments, resumes them from their last checkpoint, and compares the final
weights with those of a run that was left alone, bit for bit.

    python tests/kill_and_resume.py --kills 10

Each kill is an experiment of its own in a fresh folder. Its moment is drawn uniformly from a slice of the run's
duration, so that the kills of a run are spread over all of it: while it trains, samples, writes a checkpoint or
deletes an old one. `--die_at trainer_state.json` adds a kill at the very moment when the second checkpoint's file of
that name is about to be written. The next process does what a restarted job does, which is
`trainer.train(get_last_checkpoint(folder))`, and knows nothing of the kill. A process is forked from one that has
imported everything, or, with `--fresh`, starts anew.

It leaves out: a machine that loses power (files are not synced to disk), and more than one kill per run.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from trainer_testing import (
    common_arguments,
    rl_dataset,
    sft_dataset,
    tiny_palette_model,
    tiny_tokenizer,
    word_reward,
)
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)
from reasoning_palette.trainers.whole_checkpoints import is_whole

STEPS, SAVE_STEPS = 12, 2
ROLLOUTS = {"num_generations": 4, "max_completion_length": 6, "num_prefix_tokens": 3, "beta": 0.0}
# Checkpoints fall on generation boundaries in all of them.
RUNS = {
    "sft-prior": ("sft", {"num_prefix_tokens": 2}),
    "sft-posterior": ("sft", {"num_prefix_tokens": 2, "latent_pairing": "posterior"}),
    "grpo": ("grpo", {**ROLLOUTS, "latent_schedule": "linear-decay"}),
    "grpo-iterations": ("grpo", {**ROLLOUTS, "latent_schedule": "linear-decay", "num_iterations": 2}),
    "grpo-generation": ("grpo", {**ROLLOUTS, "latent_schedule": "constant", "steps_per_generation": 2}),
    "rloo": ("rloo", {**ROLLOUTS, "latent_schedule": "two-phase"}),
}
WEIGHTS, BEGUN, ENDED, WARNED = "weights.pt", "begun", "ended", "warned.json"
TIMEOUT_SECONDS = 300


class Clock(TrainerCallback):
    """Leaves files where training begins and ends, for the process that kills."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_begin(self, args, state, control, **kwargs):
        (self.folder / BEGUN).touch()

    def on_train_end(self, args, state, control, **kwargs):
        (self.folder / ENDED).touch()


def build(run, folder, steps=STEPS):
    """A trainer that saves every `SAVE_STEPS` steps and keeps two checkpoints."""
    method, settings = RUNS[run]
    trainer_class, config_class = {
        "sft": (PaletteSFTTrainer, PaletteSFTConfig),
        "grpo": (PaletteGRPOTrainer, PaletteGRPOConfig),
        "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig),
    }[method]
    saving = {"save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2}
    # With a decaying rate a step too many, after the last one, would leave the weights as they are.
    schedule = {"max_steps": steps, "lr_scheduler_type": "constant"}
    arguments = {"per_device_train_batch_size": 8, **schedule, **saving, **settings}
    return trainer_class(
        tiny_palette_model(),
        **({} if method == "sft" else {"reward_funcs": word_reward}),
        args=config_class(**common_arguments(folder, **arguments)),
        train_dataset=sft_dataset() if method == "sft" else rl_dataset(),
        processing_class=tiny_tokenizer(),
    )


def live(run, folder, steps=STEPS, die_at=None):
    """
    One life of a training run: from its last checkpoint, if there is one, to the end.

    Args:
        run (`str`): One of `RUNS`.
        folder (`Path`): Output folder of the run.
        steps (`int`): Optimizer steps of the whole run.
        die_at (`str`, *optional*): End of a path; the process kills itself when it is about to open such a file.
    """
    torch.set_num_threads(1)
    if die_at is not None:

        def kill_at_file(event, args):
            if event == "open" and isinstance(args[0], str) and args[0].endswith(die_at):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_at_file)
    trainer = build(run, folder, steps)
    trainer.add_callback(Clock(folder))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    warned = [str(warning.message) for warning in caught if "is torn" in str(warning.message)]
    (folder / WARNED).write_text(json.dumps(warned))
    torch.save({name: value.detach() for name, value in trainer.model.named_parameters()}, folder / WEIGHTS)


class Life:
    """A process that lives: forked from this one, or started anew."""

    def __init__(self, run, folder, steps, die_at=None, fresh=False):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (BEGUN, ENDED):
            (folder / name).unlink(missing_ok=True)
        self.folder, self.output = folder, (folder / "output.log").open("ab")
        if fresh:
            command = [sys.executable, __file__, "--live", run, "--folder", str(folder), "--steps", str(steps)]
            self._process = subprocess.Popen(command, stdout=self.output, stderr=self.output)
        else:
            self._process = multiprocessing.get_context("fork").Process(
                target=self._live_quietly, args=(run, folder, steps, die_at)
            )
            self._process.start()

    def _live_quietly(self, *args):
        for stream in (1, 2):
            os.dup2(self.output.fileno(), stream)
        live(*args)

    def kill_after(self, seconds):
        """SIGKILL, some seconds after training began. Returns whether it was still training."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (self.folder / BEGUN).exists():
            if time.monotonic() > deadline or self._has_exited():
                raise RuntimeError(f"Training has not begun; see {self.folder / 'output.log'}.")
            time.sleep(0.002)
        time.sleep(seconds)
        self._process.kill()
        self.wait()
        return not (self.folder / ENDED).exists()

    def _has_exited(self):
        is_process = isinstance(self._process, subprocess.Popen)
        return (self._process.poll() if is_process else self._process.exitcode) is not None

    def wait(self):
        """Waits for the end. Returns the exit code, negative for a signal."""
        if isinstance(self._process, subprocess.Popen):
            code = self._process.wait(TIMEOUT_SECONDS)
        else:
            self._process.join(TIMEOUT_SECONDS)
            code = self._process.exitcode
        self.output.close()
        return code


def finish(run, folder, steps, fresh=False):
    """A life to the end; its weights."""
    code = Life(run, folder, steps, fresh=fresh).wait()
    if code != 0:
        raise RuntimeError(f"{run} ended with code {code}: {(folder / 'output.log').read_text()[-3000:]}")
    return torch.load(folder / WEIGHTS)


def state_after_kill(folder):
    """What a kill left: the last checkpoint's name, and whether it is whole."""
    last = get_last_checkpoint(folder)
    return {"last": last and Path(last).name, "torn": last is not None and not is_whole(last)}


def compare(weights, expected):
    """Whether two runs ended with the same weights, bit for bit."""
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def kill_at_random(run, folder, share, generator, duration, steps, fresh):
    """
    Kills a run at a random moment.

    Args:
        share (`tuple[float, float]`): Between which fractions of the run's duration.

    Returns:
        `tuple[float, Path]`: The fraction, and the folder of the killed run.
    """
    attempt = 0
    while True:
        moment = generator.uniform(*share) * 0.9**attempt  # a run that is faster than the first may be over already
        killed = folder / f"kill-{share[0]:.3f}-{attempt}"
        if Life(run, killed, steps, fresh=fresh).kill_after(moment * duration):
            return round(moment, 3), killed
        attempt += 1


def kill_at_file(run, folder, name, steps):
    """Kills a run where it is about to write a file of its second checkpoint. Returns its name and the folder."""
    killed = folder / f"kill-{name}"
    code = Life(run, killed, steps, die_at=f"checkpoint-{2 * SAVE_STEPS}/{name}").wait()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"{run} was not killed at {name}; see {killed / 'output.log'}.")
    return name, killed


def experiments(run, folder, args):
    """
    The unbroken run, then one killed and resumed run after another.

    Yields:
        `dict`: `run`, `moment` (fraction of the unbroken run's duration, after its beginning, or a file's name),
        `last` checkpoint at the kill, whether it was `torn`, and whether the resumed run ended `identical`.
    """
    expected = finish(run, folder / "unbroken", args.steps, args.fresh)
    duration = (folder / "unbroken" / ENDED).stat().st_mtime - (folder / "unbroken" / BEGUN).stat().st_mtime
    generator = random.Random(f"{args.seed} {run}")
    kills = []
    for kill in range(args.kills):
        share = (kill / args.kills, (kill + 1) / args.kills)
        kills.append(
            lambda share=share: kill_at_random(run, folder, share, generator, duration, args.steps, args.fresh)
        )
    for name in args.die_at:
        kills.append(lambda name=name: kill_at_file(run, folder, name, args.steps))
    for kill in kills:
        moment, killed = kill()
        state = state_after_kill(killed)
        weights = finish(run, killed, args.steps, args.fresh)
        warned = json.loads((killed / WARNED).read_text())
        identical = compare(weights, expected) and bool(warned) == state["torn"]
        yield {"run": run, "moment": moment, **state, "identical": identical}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="Kills per run.")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS, help="Which runs.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Optimizer steps of a run.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument(
        "--die_at", nargs="+", default=[], help="Files of a checkpoint to kill at (forked lives only)."
    )
    parser.add_argument("--fresh", action="store_true", help="A new interpreter for every life.")
    parser.add_argument("--live", choices=RUNS, help="Be one life of this run (what --fresh starts).")
    parser.add_argument("--folder", type=Path, help="Output folder of --live.")
    args = parser.parse_args()
    if args.live:
        live(args.live, args.folder, args.steps)
        return
    total, good = 0, 0
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            results = []
            for result in experiments(run, Path(folder), args):
                print(json.dumps(result), flush=True)
                results.append(result)
        identical, torn = sum(r["identical"] for r in results), sum(r["torn"] for r in results)
        early = sum(r["last"] is None for r in results)
        print(
            f"{run}: {identical}/{len(results)} identical ({torn} killed while saving, {early} before any checkpoint)"
        )
        total, good = total + len(results), good + identical
    print(f"{good}/{total} resumed runs ended with the weights of the unbroken run, bit for bit.")
    sys.exit(good != total)


if __name__ == "__main__":
    main()
