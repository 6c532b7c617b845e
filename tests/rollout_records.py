"""What the models saw in a GRPO or RLOO run, call by call, and the hand-spliced log-probs to hold it against."""

from collections import Counter
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from trainer_testing import spliced_logits, tiny_base

from reasoning_palette.trainers.palette_trainer_mixin import palette_model_of


@dataclass
class Scoring:
    """
    One call that took log-probs.

    Attributes:
        role: `"loss"` (with gradient), `"reference"`, or `"old"` (the policy at the time of the rollout).
        rows: (prompt ids, completion ids) without padding, as tuples.
        log_probs: Of the completions' tokens, row by row.
        expected: The same from hand-spliced rows of a stock model with the weights of that moment.
    """

    role: str
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]]
    log_probs: list[torch.Tensor]
    expected: list[torch.Tensor]

    @property
    def error(self):
        """Largest difference in log-probs."""
        pairs = zip(self.log_probs, self.expected, strict=True)
        return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


@dataclass
class Rollouts:
    """One generation, row by row: the prompts that `generate` got, what came out, the codes in the table."""

    seen: list[tuple[int, ...]]
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]]
    codes: list[int]


class RolloutRecord:
    """
    Records a trainer's run from its construction on.

    Args:
        trainer: A GRPO or RLOO trainer.
        config (`dict`, *optional*): Config fields of the stock model, as `tiny_base` takes them.
        reference (callable, *optional*): Gives the expected log-probs of a model's rows. By default they are
            hand-spliced.
    """

    def __init__(self, trainer, config=None, reference=None):
        self.trainer, self.config = trainer, config
        self.reference = reference or self._spliced
        self.generations: list[Rollouts] = []
        self.scorings: list[Scoring] = []
        self.left_padded = False
        self._seen: list[tuple[int, ...]] = []
        self._wrap(trainer, "_generate", self._record_generation)
        self._wrap(trainer, "_generate_and_score_completions", self._record_codes)
        self._wrap(trainer, "_get_per_token_logps_and_entropies", self._record_scoring)
        self._wrap(trainer.palette_model, "generate", self._record_generate)

    @staticmethod
    def _wrap(owner, name, recorder):
        original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: recorder(original, *args, **kwargs))

    def _record_generate(self, generate, *args, **kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
        self.left_padded |= not bool(mask.all())
        self._seen += [tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
        return generate(*args, **kwargs)

    def _record_generation(self, generate, prompts):
        self._seen = []
        output = generate(prompts)
        rows = [(tuple(prompt), tuple(completion)) for prompt, completion in zip(output[0], output[1], strict=True)]
        self.generations.append(Rollouts(self._seen, rows, []))
        return output

    def _record_codes(self, generate_and_score, inputs):
        output = generate_and_score(inputs)
        table = list(self.trainer._logs["extra"]["latent_code"])  # a column of the completions table
        self.generations[-1].codes = table[-len(self.generations[-1].rows) :]
        return output

    def _record_scoring(self, score, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        output = score(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        rows, log_probs = [], []
        for ids, mask, values in zip(input_ids, attention_mask.bool(), output[0].detach(), strict=True):
            count = int(mask[-logits_to_keep:].sum())
            real = ids[mask].tolist()
            rows.append((tuple(real[: len(real) - count]), tuple(real[len(real) - count :])))
            log_probs.append(values[:count].clone())
        self.scorings.append(Scoring(self._role(model), rows, log_probs, self.reference(model, rows)))
        return output

    def _spliced(self, model, rows):
        return spliced_log_probs(stock_twin(model, tiny_base(**self.config)), self.trainer, rows)

    def _role(self, model):
        if torch.is_grad_enabled():
            return "loss"
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        as_reference = model is self.trainer.ref_model or any(
            layer.disable_adapters or layer.active_adapters == ["ref"] for layer in layers
        )
        return "reference" if as_reference else "old"

    def check(self, num_iterations):
        """
        Every rollout's own prefix, and no other, was there at the rollout, at each scoring and in the reference; and
        all log-probs are those of the hand-spliced rows.

        Returns:
            `float`: The largest difference in log-probs.
        """
        assert self.left_padded
        config, length = self.trainer.palette_model.config, self.trainer.args.num_prefix_tokens
        for rollouts in self.generations:
            assert rollouts.seen == [prompt for prompt, _ in rollouts.rows]
            assert 0 < sum(code >= 0 for code in rollouts.codes) < len(rollouts.codes)
            for (prompt, completion), code in zip(rollouts.rows, rollouts.codes, strict=True):
                latent = [token for token in prompt if token >= config.latent_id_base]
                expected = self.trainer.palette_model.latent_ids(torch.tensor([code]), length) if code >= 0 else []
                assert latent == (expected[0].tolist() if code >= 0 else [])
                assert all(token < config.latent_id_base for token in completion)
        rolled_out = Counter(row for rollouts in self.generations for row in rollouts.rows)
        by_role = {role: Counter() for role in ("loss", "reference", "old")}
        for scoring in self.scorings:
            by_role[scoring.role].update(scoring.rows)
        assert by_role["loss"] == Counter({row: count * num_iterations for row, count in rolled_out.items()})
        assert by_role["reference"] == by_role["old"] == rolled_out
        return max(scoring.error for scoring in self.scorings)


def stock_twin(model, twin=None):
    """
    A stock model with the weights that `model` computes with now, adapters merged in by hand.

    Args:
        model: A palette model, or a `PeftModel` of one.
        twin: What takes the weights; a fresh `tiny_base` by default.
    """
    layers = {
        name: module for name, module in palette_model_of(model).named_modules() if isinstance(module, LoraLayer)
    }
    weights = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in palette_model_of(model).state_dict().items()
        if "lora_" not in name and not name.startswith("palette.")
    }
    for name, layer in layers.items():
        for adapter in [] if layer.disable_adapters else layer.active_adapters:
            weight = layer.get_base_layer().weight + layer.get_delta_weight(adapter)
            if adapter in layer.lora_magnitude_vector:  # DoRA: W' = m (W + BA) / ||W + BA||, row by row
                magnitude = layer.lora_magnitude_vector[adapter].weight
                weight = weight * (magnitude / weight.norm(dim=1))[:, None]
            weights[f"{name}.weight"] = weight.detach()
    twin = tiny_base() if twin is None else twin
    twin.load_state_dict(weights)
    return twin.eval()


def spliced_log_probs(base, trainer, rows):
    """Log-probs of completions from rows whose prefix is spliced into `inputs_embeds` by hand."""
    model = trainer.palette_model
    results = []
    for prompt, completion in rows:
        latent = [token for token in prompt if token >= model.config.latent_id_base]
        ordinary = [token for token in [*prompt, *completion] if token < model.config.latent_id_base]
        at = prompt.index(latent[0]) if latent else 0
        logits = spliced_logits(base, model, latent, ordinary, at)
        log_probs = (logits / trainer.temperature).log_softmax(-1)
        first = len(prompt)
        results.append(torch.stack([log_probs[first + i - 1, token] for i, token in enumerate(completion)]))
    return results
