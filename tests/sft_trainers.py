"""SFT trainers of tiny models, TRL's and ours, and what to hold their batches and losses against."""

import torch
from trainer_testing import (
    common_arguments,
    sft_dataset,
    spliced_logits,
    tiny_base,
    tiny_palette_model,
    tiny_tokenizer,
)
from trl import SFTConfig, SFTTrainer

from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer

ID_BASE, LENGTH = 1 << 24, 3
SETTINGS = {"per_device_train_batch_size": 4, "max_steps": 3, "max_length": 32}
KEYWORDS = (
    "train_dataset",
    "eval_dataset",
    "data_collator",
    "peft_config",
    "formatting_func",
    "compute_loss_func",
    "compute_metrics",
)


def make_trainer(folder, model=None, stock=False, tokenizer=None, **settings):
    keywords = {"train_dataset": sft_dataset()}
    keywords |= {name: settings.pop(name) for name in KEYWORDS if name in settings}
    if stock:
        trainer_class, config_class = SFTTrainer, SFTConfig
        settings = {name: value for name, value in settings.items() if not name.startswith("latent_")}
    else:
        trainer_class, config_class = PaletteSFTTrainer, PaletteSFTConfig
        settings = {"num_prefix_tokens": LENGTH, **settings}
    default = tiny_base() if stock else tiny_palette_model()
    return trainer_class(
        model=default if model is None else model,
        args=config_class(**common_arguments(folder, **{**SETTINGS, **settings})),
        processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
        **keywords,
    )


def train_batch(trainer):
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def documents_of(batch):
    """(ids, labels) of each document of more than one token, without padding."""
    documents = []
    for row in range(len(batch["input_ids"])):
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        if "attention_mask" in batch:
            real = batch["attention_mask"][row].bool().tolist()
            starts, stop = [real.index(True)], max(index for index, bit in enumerate(real) if bit) + 1
        else:
            starts = [i for i, position in enumerate(batch["position_ids"][row].tolist()) if position == 0]
            stop = len(ids)
        for start, end in zip(starts, [*starts[1:], stop], strict=True):
            documents.append((ids[start:end], labels[start:end]))
    return [document for document in documents if len(document[0]) > 1]


def assert_differs_by_prefixes_only(ours, stock, at=0):
    """The documents of a batch are those of TRL's with `LENGTH` latent ids each; the same tokens carry loss."""
    pairs = list(zip(documents_of(ours), documents_of(stock), strict=True))
    assert pairs
    for (ids, labels), (stock_ids, stock_labels) in pairs:
        assert ids[:at] + ids[at + LENGTH :] == stock_ids
        assert all(token >= ID_BASE for token in ids[at : at + LENGTH])
        assert labels[at : at + LENGTH] == [-100] * LENGTH
        # No model scores the first token of a document: there is nothing in front of it.
        assert (labels[:at] + labels[at + LENGTH :])[1:] == stock_labels[1:]
        assert labels[0] == labels[at + LENGTH if at == 0 else 0] == -100
    if "position_ids" in ours:
        lengths = ours["cu_seq_lens_q"].diff().tolist()
        assert [length for length in lengths if length > 1] == [len(ids) for (ids, _), _ in pairs]


def spliced_scores(twin, model, batch):
    """Logits (tokens, V) that score the labelled tokens, and these, from hand-spliced documents of a stock model."""
    logits, targets = [], []
    for ids, labels in documents_of(batch):
        latent = [token for token in ids if token >= ID_BASE]
        at = ids.index(latent[0]) if latent else 0
        ordinary = [token for token in ids if token < ID_BASE]
        scores = spliced_logits(twin, model, latent, ordinary, at, grad=True)
        for index, label in enumerate(labels):
            if label != -100:
                logits.append(scores[index - 1])
                targets.append(label)
    return torch.stack(logits), torch.tensor(targets)


def hand_loss(logits, targets, loss_type="nll", smoothing=0.0):
    log_probs = logits.log_softmax(-1)
    taken = log_probs[range(len(targets)), targets]
    if loss_type == "dft":
        return -(taken * taken.detach().exp()).mean()
    return -(1 - smoothing) * taken.mean() - smoothing * log_probs.mean()
