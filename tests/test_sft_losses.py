"""SFT losses and gradients under latents equal those of hand-spliced documents, for every loss and way to batch."""

import pytest
import torch
from rollout_records import stock_twin
from sft_trainers import assert_differs_by_prefixes_only, hand_loss, make_trainer, spliced_scores, train_batch
from trainer_testing import sft_dataset, tiny_base, tiny_palette_model, tiny_tokenizer

EAGER = {"attn_implementation": "eager"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "dft"},
        {"loss_type": "chunked_nll"},
        {"label_smoothing_factor": 0.2},
        {"completion_only_loss": False, "truncation_mode": "keep_end", "max_length": 6, "pad_to_multiple_of": 8},
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 24, "pad_to_multiple_of": 16},
        {"packing": True, "packing_strategy": "bfd_split", "max_length": 5, "completion_only_loss": False},
    ],
    ids=["nll", "dft", "chunked_nll", "smoothed", "keep_end", "padding_free", "packed", "packed_and_split"],
)
@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated", "ignore:`loss_type='chunked_nll'`")
def test_loss_and_gradients_equal_a_hand_spliced_reference(tmp_path, settings):
    """Packed rows attend within their documents in eager attention, which reads the position ids."""
    stock = train_batch(make_trainer(tmp_path, tiny_base(**EAGER), stock=True, **settings))
    trainer = make_trainer(tmp_path, tiny_palette_model(**EAGER), latent_domain="math", **settings)
    batch = train_batch(trainer)
    assert_differs_by_prefixes_only(batch, stock)
    multiple = settings.get("pad_to_multiple_of", 1)
    assert batch["input_ids"].shape[1] % multiple == 0
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    twin = stock_twin(trainer.model, tiny_base(**EAGER))
    logits, targets = spliced_scores(twin, trainer.palette_model, batch)
    expected = hand_loss(logits, targets, trainer.args.loss_type, settings.get("label_smoothing_factor", 0.0))
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    gradients = dict(twin.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=0)
    trainer.train()
    assert trainer.state.global_step == 3


def test_prefix_after_bos(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "w0"
    model = tiny_palette_model(bos_token_id=3)
    model.config.prefix_position = "after_bos"
    dataset = sft_dataset().map(lambda row: {"prompt": "w0 " + row["prompt"]})
    arguments = {"train_dataset": dataset, "tokenizer": tokenizer, "completion_only_loss": False}
    stock = train_batch(make_trainer(tmp_path, stock=True, **arguments))
    trainer = make_trainer(tmp_path, model, **arguments)
    batch = train_batch(trainer)
    assert_differs_by_prefixes_only(batch, stock, at=1)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    logits, targets = spliced_scores(stock_twin(trainer.model), trainer.palette_model, batch)
    torch.testing.assert_close(loss, hand_loss(logits, targets), atol=1e-5, rtol=0)
    packed = make_trainer(tmp_path, model, **arguments, packing=True)
    assert_differs_by_prefixes_only(
        train_batch(packed), train_batch(make_trainer(tmp_path, stock=True, packing=True, **arguments)), at=1
    )
