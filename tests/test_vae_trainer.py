"""Training the palette (METHOD eq. 8): loss, metrics, warnings, exact resume, the checkpoint."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import TrlParser

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE, pool_traces
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import (
    LatentOverloadWarning,
    PaletteVAETrainer,
    PosteriorCollapseWarning,
)
from reasoning_palette.trainers.trainable_palette import PosteriorMetrics, TrainablePalette

HIDDEN_SIZE = 16
WORDS = ["[UNK]", *"abcdefghijklmnopqrst"]
DOMAINS = {"math": "abcdefgh", "code": "ijklmnop"}


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A tiny base with a name, as it is after `from_pretrained`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def make_traces(num_traces=96, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(num_traces):
        domain = list(DOMAINS)[index % 2]
        letters = generator.choice(list(DOMAINS[domain]), generator.integers(3, 12)).tolist()
        rows.append({"question": " ".join(letters[:2]), "answer": " ".join(letters[2:]), "domain": domain})
    return rows


@pytest.fixture(scope="module")
def traces():
    return make_traces()


def make_args(folder, **kwargs):
    defaults = {
        "latent_dim": 4,
        "hidden_sizes": [32],
        "num_train_epochs": 6,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
    }
    return PaletteVAEConfig(str(folder), **{**defaults, **kwargs})


def train(base, tokenizer, traces, folder, **kwargs):
    trainer = PaletteVAETrainer(base, make_args(folder, **kwargs), traces, processing_class=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


class TestLoss:
    def test_terms_by_hand(self):
        torch.manual_seed(0)
        palette = PaletteVAE(HIDDEN_SIZE, 4, (8,))
        palette.embedding_mean.normal_()
        palette.embedding_std.uniform_(0.5, 2.0)
        trainable = TrainablePalette(copy.deepcopy(palette))
        palette.load_state_dict(trainable.palette.state_dict())
        embeddings = torch.randn(5, HIDDEN_SIZE)
        torch.manual_seed(1)
        terms = trainable(embeddings)

        torch.manual_seed(1)
        mean, logvar = palette.encode(embeddings)
        decoded = palette.decode(mean + (0.5 * logvar).exp() * torch.randn(5, 4))
        z_scores = [(x - palette.embedding_mean) / palette.embedding_std for x in (embeddings, decoded)]
        torch.testing.assert_close(terms["reconstruction"], (z_scores[0] - z_scores[1]).square().mean(dim=1))
        posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
        prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
        torch.testing.assert_close(terms["kl"], torch.distributions.kl_divergence(posterior, prior).sum(dim=1))
        torch.testing.assert_close(terms["mean"], mean)

    def test_kl_warmup(self, base, tokenizer, traces, tmp_path):
        trainer = PaletteVAETrainer(
            base, make_args(tmp_path, beta=0.5, kl_warmup_ratio=0.25), traces, processing_class=tokenizer
        )
        trainer.state.max_steps = 16
        batch = {"embeddings": trainer.train_dataset.__getitems__(list(range(8)))}
        for step, weight in [(0, 0.125), (1, 0.25), (3, 0.5), (10, 0.5)]:
            trainer.state.global_step = step
            trainer.model.train()
            loss, terms = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            expected = terms["reconstruction"].mean() + weight * terms["kl"].mean()
            torch.testing.assert_close(loss, expected)
        trainer.state.global_step = 0
        trainer.model.eval()
        loss, terms = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        torch.testing.assert_close(loss, terms["reconstruction"].mean() + 0.5 * terms["kl"].mean())

    def test_metrics_by_hand(self):
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(30, 5, generator=generator) * torch.tensor([1.0, 0.5, 0.11, 0.09, 0.0]) + 3.0
        reconstruction, kl = torch.rand(2, 30, generator=generator)
        metrics = PosteriorMetrics()
        for start in (0, 20):
            batch = slice(start, start + 20)
            predictions = (mean[batch], reconstruction[batch], kl[batch])
            result = metrics(type("P", (), {"predictions": predictions})(), compute_result=start == 20)
        assert result["reconstruction"] == pytest.approx(reconstruction.mean().item())
        assert result["kl"] == pytest.approx(kl.mean().item())
        assert result["active_units"] == int((mean.var(dim=0, correction=0) > 0.01).sum()) == 3


class TestTraining:
    @pytest.fixture(scope="class")
    def trainer(self, base, tokenizer, traces, tmp_path_factory):
        before = copy.deepcopy(base.state_dict())
        held_out = make_traces(20, seed=1)
        args = make_args(tmp_path_factory.mktemp("vae"), num_train_epochs=60, logging_steps=10)
        trainer = PaletteVAETrainer(base, args, traces, held_out, tokenizer)
        trainer.result = trainer.train()
        assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
        return trainer

    def test_it_learns(self, trainer):
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logs[-1]["reconstruction"] < 0.5 * logs[0]["reconstruction"]
        assert {"loss", "reconstruction", "kl", "learning_rate", "grad_norm"} <= logs[-1].keys()

    def test_final_metrics(self, trainer):
        metrics = trainer.result.metrics
        for prefix in ("train", "eval"):
            assert 0 < metrics[f"{prefix}_reconstruction"] < 0.6
            assert 1 < metrics[f"{prefix}_kl"] < 20
            assert 1 <= metrics[f"{prefix}_active_units"] <= 4
        assert any("train_active_units" in entry for entry in trainer.state.log_history)
        expected = metrics["eval_reconstruction"] + trainer.args.beta * metrics["eval_kl"]
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)

    def test_metrics_are_those_of_the_frozen_palette(self, trainer, traces, base, tokenizer):
        palette = trainer.palette
        mean, logvar = palette.encode(pool_traces(traces, base.get_input_embeddings(), tokenizer))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean().item()
        assert trainer.result.metrics["train_kl"] == pytest.approx(kl, rel=1e-5)
        active = int((mean.var(dim=0, correction=0) > 0.01).sum())
        assert trainer.result.metrics["train_active_units"] == active

    def test_palette(self, trainer, traces, base, tokenizer):
        palette = trainer.palette
        assert palette is trainer.palette
        assert isinstance(palette, PaletteVAE) and palette.trained and list(palette.parameters()) == []
        pooled = pool_traces(traces, base.get_input_embeddings(), tokenizer)
        torch.testing.assert_close(palette.embedding_mean, pooled.mean(dim=0))
        torch.testing.assert_close(palette.embedding_std, pooled.std(dim=0, correction=0))
        weights = trainer.model.palette.encoder[0].weight
        assert torch.equal(palette.encoder[0].weight, weights.data)
        assert palette.domains == {"math": {"source": 1, "count": 48}, "code": {"source": 2, "count": 48}}

    def test_domains_are_fitted_on_posterior_means(self, trainer, traces, base, tokenizer):
        rows = [row for row in traces if row["domain"] == "code"]
        expected = copy.deepcopy(trainer.palette)
        mean, _ = expected.encode(pool_traces(rows, base.get_input_embeddings(), tokenizer))
        source = expected.fit_domain("again", mean)
        torch.testing.assert_close(expected.domain_means[source - 1], expected.domain_means[1])
        torch.testing.assert_close(expected.domain_cholesky[source - 1], expected.domain_cholesky[1])

    def test_decoding_a_domain_lands_on_it(self, trainer, traces, base, tokenizer):
        palette = trainer.palette
        pooled = pool_traces(traces, base.get_input_embeddings(), tokenizer)
        centres = torch.stack([pooled[0::2].mean(dim=0), pooled[1::2].mean(dim=0)])
        for index in range(2):
            noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
            latents = palette.domain_means[index] + noise @ palette.domain_cholesky[index].T
            nearest = torch.cdist(palette.decode(latents), centres).argmin(dim=1)
            assert (nearest == index).float().mean() > 0.9

    def test_evaluate_takes_traces_and_repeats_itself(self, trainer):
        held_out = make_traces(20, seed=1)
        state = torch.get_rng_state()
        first, second = trainer.evaluate(held_out), trainer.evaluate()
        assert first["eval_loss"] == second["eval_loss"]
        assert torch.equal(torch.get_rng_state(), state)
        named = trainer.evaluate({"a": held_out, "b": make_traces(10, seed=2)})
        assert named["eval_a_kl"] == first["eval_kl"] != named["eval_b_kl"]

    def test_evaluation_sets_by_name(self, base, tokenizer, traces, tmp_path):
        sets = {"a": make_traces(20, seed=1), "b": make_traces(10, seed=2)}
        trainer = PaletteVAETrainer(base, make_args(tmp_path), traces, sets, tokenizer)
        metrics = trainer.evaluate()
        assert metrics["eval_a_kl"] != metrics["eval_b_kl"]
        assert trainer.evaluate(make_traces(20, seed=1))["eval_kl"] == metrics["eval_a_kl"]

    def test_checkpoint(self, trainer, base, traces, tmp_path):
        trainer.save_model(tmp_path / "palette")
        assert not (tmp_path / "palette" / "model.safetensors").exists()
        config = json.loads((tmp_path / "palette" / "config.json").read_text())
        assert config["palette_only"] and config["base_model_name_or_path"] == base.config.name_or_path
        model = PaletteForCausalLM.from_pretrained(tmp_path / "palette")
        for name, value in trainer.palette.state_dict().items():
            assert torch.equal(model.palette.state_dict()[name], value), name
        assert model.palette.domains == trainer.palette.domains
        assert model.pool_traces(traces).shape == (96, HIDDEN_SIZE)
        # The base that was trained on is left as it was.
        assert base.get_input_embeddings()._forward_hooks == {}
        trainer.save_model(tmp_path / "again")

    def test_model_card(self, trainer, base):
        trainer.create_model_card(model_name="palette")
        card = Path(trainer.args.output_dir, "README.md").read_text()
        assert "palette-vae" in card and "arxiv:2512.17206" in card and "trained with | the VAE of" in card


class TestSources:
    def test_base_by_path(self, base, traces, tmp_path):
        trainer = PaletteVAETrainer(base.config.name_or_path, make_args(tmp_path), traces)
        assert trainer.palette.hidden_size == HIDDEN_SIZE and not trainer.palette.trained

    @pytest.mark.parametrize("streaming", [False, True])
    def test_datasets(self, base, tokenizer, traces, tmp_path, streaming):
        dataset = Dataset.from_list(traces)
        dataset = dataset.to_iterable_dataset() if streaming else dataset
        trainer = PaletteVAETrainer(base, make_args(tmp_path), dataset, processing_class=tokenizer)
        expected = pool_traces(traces, base.get_input_embeddings(), tokenizer)
        assert torch.equal(torch.from_numpy(trainer.train_dataset.embeddings), expected)
        assert trainer.train_dataset.domains == [row["domain"] for row in traces]

    def test_traces_without_domains(self, base, tokenizer, traces, tmp_path):
        rows = [{"prompt": row["question"], "completion": " " + row["answer"]} for row in traces]
        trainer = PaletteVAETrainer(base, make_args(tmp_path), rows, processing_class=tokenizer)
        assert trainer.palette.domains == {}


@pytest.mark.filterwarnings("ignore:Posterior collapse")
class TestResume:
    def test_bit_identical(self, base, tokenizer, traces, tmp_path):
        class StopAtStep(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 20:
                    control.should_save = control.should_training_stop = True

        def make_trainer(folder, **kwargs):
            args = make_args(folder, logging_steps=5, eval_strategy="steps", eval_steps=7)
            return PaletteVAETrainer(base, args, traces, make_traces(10, 1), tokenizer, **kwargs)

        whole = make_trainer(tmp_path / "whole")
        whole.train()
        make_trainer(tmp_path / "parts", callbacks=[StopAtStep()]).train()
        resumed = make_trainer(tmp_path / "parts")
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == whole.state.global_step == 36
        for name, value in whole.palette.state_dict().items():
            assert torch.equal(resumed.palette.state_dict()[name], value), name

    def test_same_seed_same_palette(self, base, tokenizer, traces, tmp_path):
        palettes = [train(base, tokenizer, traces, tmp_path, seed=seed).palette for seed in (0, 0, 1)]
        weights = [palette.decoder[-1].weight for palette in palettes]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


class TestWarnings:
    def test_posterior_collapse(self, base, tokenizer, traces, tmp_path):
        trainer = PaletteVAETrainer(
            base, make_args(tmp_path, beta=100.0, num_train_epochs=30), traces, processing_class=tokenizer
        )
        with pytest.warns(PosteriorCollapseWarning, match=r"Posterior collapse: .* Lower `beta` \(now 100\)"):
            trainer.train()

    def test_overload(self, base, tokenizer, traces, tmp_path):
        args = make_args(tmp_path, beta=0.0, latent_dim=8, num_train_epochs=60)
        trainer = PaletteVAETrainer(base, args, traces, processing_class=tokenizer)
        with pytest.warns(LatentOverloadWarning, match=r"The latent carries too much: .* Raise `beta` \(now 0\)"):
            trainer.train()


class TestRefusals:
    @pytest.mark.parametrize(
        ("argument", "value", "message"),
        [
            ("latent_dim", 0, "`latent_dim` must be a positive integer, got 0"),
            ("hidden_sizes", [64, 0], r"`hidden_sizes` must be a list of positive integers, got \[64, 0\]"),
            ("hidden_sizes", 64, "`hidden_sizes` must be a list of positive integers, got 64"),
            ("decoder_type", "cnn", r"`decoder_type` must be one of \('mlp', 'gpt'\), got 'cnn'"),
            ("num_slots", 8, "`num_slots`=8 is for `decoder_type`='gpt', got 'mlp'. Drop it"),
            ("beta", -1.0, "`beta` must be a number of at least 0, got -1.0"),
            ("beta", float("nan"), "`beta` must be a number of at least 0, got nan"),
            ("kl_warmup_ratio", 1.5, "`kl_warmup_ratio` must be between 0 and 1, got 1.5"),
            ("batch_eval_metrics", False, "`batch_eval_metrics` must be True"),
            ("hub_strategy", "checkpoint", "`hub_strategy` must be 'end'"),
        ],
    )
    def test_arguments(self, tmp_path, argument, value, message):
        with pytest.raises(ValueError, match=message):
            make_args(tmp_path, **{argument: value})

    def test_other_args(self, base, traces):
        with pytest.raises(TypeError, match="`args` must be a PaletteVAEConfig, got str"):
            PaletteVAETrainer(base, "output", traces)

    def test_no_traces(self, base, tmp_path):
        with pytest.raises(ValueError, match="`train_dataset` is None: pass traces"):
            PaletteVAETrainer(base, make_args(tmp_path))

    def test_empty_dataset(self, base, tokenizer, tmp_path):
        with pytest.raises(ValueError, match="the dataset is empty"):
            PaletteVAETrainer(base, make_args(tmp_path), [], processing_class=tokenizer)
        with pytest.raises(ValueError, match="the dataset is empty"):
            empty = IterableDataset.from_generator(lambda: iter(()))
            PaletteVAETrainer(base, make_args(tmp_path), empty, processing_class=tokenizer)

    def test_wrong_columns(self, base, tokenizer, tmp_path):
        with pytest.raises(ValueError, match=r"found the columns \['text'\], but traces have `question`"):
            PaletteVAETrainer(base, make_args(tmp_path), [{"text": "a"}], processing_class=tokenizer)

    def test_empty_traces(self, base, tokenizer, traces, tmp_path):
        with pytest.raises(ValueError, match="1 traces have no tokens to pool: row 96"):
            rows = [*traces, {"question": "", "answer": ""}]
            PaletteVAETrainer(base, make_args(tmp_path), rows, processing_class=tokenizer)

    def test_equal_traces(self, base, tokenizer, tmp_path):
        with pytest.raises(ValueError, match="All 9 traces have the same mean embedding"):
            rows = [{"question": "a b", "answer": "c"}] * 9
            PaletteVAETrainer(base, make_args(tmp_path), rows, processing_class=tokenizer)

    def test_single_trace_domains(self, base, tokenizer, traces, tmp_path):
        with pytest.raises(ValueError, match=r"The domains \['qa'\] of `train_dataset` have one trace each"):
            rows = [*traces, {"question": "a", "answer": "b", "domain": "qa"}]
            PaletteVAETrainer(base, make_args(tmp_path), rows, processing_class=tokenizer)

    def test_too_many_domains(self, base, tokenizer, traces, tmp_path):
        with pytest.raises(ValueError, match="has 31 domains in its `domain` column, a palette has room for 30"):
            rows = [{**row, "domain": str(index % 31)} for index, row in enumerate(traces)]
            PaletteVAETrainer(base, make_args(tmp_path), rows, processing_class=tokenizer)

    def test_other_models(self, traces, tmp_path):
        with pytest.raises(TypeError, match="`model` must be a transformers model, a folder or a Hub id, got int"):
            PaletteVAETrainer(3, make_args(tmp_path), traces)

    def test_palette_models(self, base, tokenizer, traces, tmp_path):
        model = PaletteForCausalLM.from_base(copy.deepcopy(base), PaletteVAE(HIDDEN_SIZE), tokenizer)
        with pytest.raises(ValueError, match="`model` has a palette already"):
            PaletteVAETrainer(model, make_args(tmp_path), traces)

    def test_no_tokenizer(self, base, traces, tmp_path):
        nameless = LlamaForCausalLM(copy.deepcopy(base.config))
        nameless.config._name_or_path = nameless.name_or_path = ""
        with pytest.raises(ValueError, match=r"no tokenizer for the base .* Pass it as `processing_class`"):
            PaletteVAETrainer(nameless, make_args(tmp_path), traces)

    def test_saving_for_a_base_without_a_name(self, base, tokenizer, traces, tmp_path):
        nameless = LlamaForCausalLM(copy.deepcopy(base.config))
        nameless.config._name_or_path = nameless.name_or_path = ""
        trainer = PaletteVAETrainer(nameless, make_args(tmp_path), traces, processing_class=tokenizer)
        with pytest.raises(ValueError, match=r"this base was built in memory and has no name\. Save it with"):
            trainer.save_model()


def test_command_line():
    (args,) = TrlParser(PaletteVAEConfig).parse_args_and_config(
        ["--output_dir", "out", "--hidden_sizes", "128", "64", "--beta", "0.1", "--latent_dim", "16"]
    )
    assert (args.hidden_sizes, args.beta, args.latent_dim, args.learning_rate) == ([128, 64], 0.1, 16, 3e-3)
