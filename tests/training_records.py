"""What a training run did, step by step: to compare two runs bit by bit."""

from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback

# Logged values that measure time, and the palette's own.
NOT_COMPARED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time")


@dataclass
class TrainingRecord:
    """
    Attributes:
        losses: Loss of every micro-step, as `training_step` returned it.
        gradients: By optimizer step: name -> gradient, as the optimizer sees it.
        weights: By optimizer step: name -> parameter after it.
        logs: Logged values, without those of time and of the palette.
    """

    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)
    logs: list[dict] = field(default_factory=list)


class _Recorder(TrainerCallback):
    def __init__(self, record):
        self.record = record

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = model.named_parameters()
        self.record.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.record.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def train_and_record(trainer):
    """Trains and returns the [`TrainingRecord`]."""
    record, training_step = TrainingRecord(), trainer.training_step

    def recording(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        record.losses.append(loss.clone())
        return loss

    trainer.training_step = recording
    trainer.add_callback(_Recorder(record))
    trainer.train()
    left_out = ("latent/", "eval_latent/", "eval_runtime", "eval_samples", "eval_steps")
    logs = [
        {key: value for key, value in entry.items() if not key.startswith(left_out) and key not in NOT_COMPARED}
        for entry in trainer.state.log_history
    ]
    record.logs = [entry for entry in logs if entry.keys() - {"epoch", "step"}]
    return record


def assert_identical(mine, theirs):
    """Losses, gradients, weights and logs of two runs are the same, bit for bit, in runs that move."""
    assert len(theirs.losses) >= len(theirs.weights) >= 2
    for name in ("losses", "gradients", "weights"):
        assert len(getattr(mine, name)) == len(getattr(theirs, name)), name
    for step, (loss, other) in enumerate(zip(mine.losses, theirs.losses, strict=True)):
        assert torch.equal(loss, other), f"loss of micro-step {step}: {loss} and {other}"
    for kind in ("gradients", "weights"):
        for step, (values, others) in enumerate(zip(getattr(mine, kind), getattr(theirs, kind), strict=True)):
            assert values.keys() == others.keys()
            for name, value in values.items():
                assert torch.equal(value, others[name]), f"{kind} of {name} at step {step}"
    assert mine.logs == theirs.logs
    assert any(entry.get("grad_norm", 0) > 0 for entry in mine.logs)
    trained = [name for name, gradient in theirs.gradients[0].items() if gradient.dim() > 1]
    assert trained
    for name in trained:
        assert not torch.equal(theirs.weights[0][name], theirs.weights[-1][name]), f"{name} does not move"
