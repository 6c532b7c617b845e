"""Losses and gradients of GRPO and RLOO under latents equal those computed from hand-spliced rows of a stock model.

TRL's own loss is run twice: on the log-probs that the trainer takes, and on log-probs of a stock copy whose rows have
the prefix spliced into `inputs_embeds`.
"""

import pytest
import torch
from rollout_records import stock_twin
from rollout_trainers import generate, make_trainer
from torch.nn.functional import pad
from trainer_testing import spliced_logits, tiny_palette_model


def length_reward(completion_ids, **kwargs):
    return [float(len(ids) + ids[0] % 3) for ids in completion_ids]


def spliced_scores(twin, trainer):
    """A stand-in for the trainer's scoring, with gradients of `twin`."""

    def score(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        log_probs, entropies = [], []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            count, real = int(mask[-logits_to_keep:].sum()), ids[mask].tolist()
            latent = [token for token in real if token >= trainer.palette_model.config.latent_id_base]
            logits = spliced_logits(twin, trainer.palette_model, latent, real[len(latent) :], grad=True)
            scores = (logits / trainer.temperature).log_softmax(-1)[len(real) - count - 1 : -1]
            taken = scores[range(count), real[len(real) - count :]]
            log_probs.append(pad(taken, (0, logits_to_keep - count)))
            entropies.append(pad(-(scores.exp() * scores).sum(-1), (0, logits_to_keep - count)))
        return torch.stack(log_probs), torch.stack(entropies), None

    return score


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *[
            ("grpo", {"loss_type": loss_type})
            for loss_type in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
        ],
        ("grpo", {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True}),
        ("grpo", {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon_high": 0.28, "delta": 1.5}),
        ("grpo", {"top_entropy_quantile": 0.5, "entropy_coef": 0.1}),
        ("grpo", {"use_adaptive_entropy": True, "off_policy_mask_threshold": 0.01}),
        ("grpo", {"mask_truncated_completions": True, "scale_rewards": "batch", "pad_to_multiple_of": 8}),
        ("rloo", {"beta": 0.1}),
        ("rloo", {"beta": 0.0, "normalize_advantages": True, "reward_clip_range": (1.0, 5.0)}),
        ("rloo", {"beta": 0.0, "mask_truncated_completions": True, "pad_to_multiple_of": 8}),
    ],
)
def test_loss_and_gradients_equal_a_hand_spliced_reference(tmp_path, method, settings):
    model = tiny_palette_model()
    if settings.get("beta"):
        model.save_pretrained(tmp_path / "palette")
        model = str(tmp_path / "palette")
    # With two iterations the log-probs of the rollout are kept, so that ratios differ from 1.
    settings = {"num_iterations": 2, "temperature": 0.9, "reward_funcs": length_reward, **settings}
    trainer = make_trainer(tmp_path, method, model, **settings)
    trainer.current_gradient_accumulation_steps = 1
    inputs = generate(trainer)
    id_base = trainer.palette_model.config.latent_id_base
    assert (inputs["prompt_ids"] >= id_base).any(dim=1).float().mean() == 0.5
    with torch.no_grad():  # the policy has moved on since
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)

    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    twin = stock_twin(trainer.model)
    trainer._get_per_token_logps_and_entropies = spliced_scores(twin, trainer)
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert largest > 1e-3
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad / largest, gradients[name] / largest, atol=1e-5, rtol=0)
