"""A palette on a base that responds to what stands before its prompt: the shipped one, without any SFT."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from reasoning_palette.evaluation.countdown import generate_problems, generate_traces
from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.trainers import PaletteVAEConfig, PaletteVAETrainer

BASE = Path(__file__).parents[1] / "examples" / "countdown_base"
LENGTH = {"num_prefix_tokens": 8, "max_new_tokens": 48, "do_sample": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    arguments = PaletteVAEConfig(
        str(tmp_path_factory.mktemp("vae")),
        max_steps=300,
        beta=0.01,
        latent_dim=16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    traces = Dataset.from_list(generate_traces("train", 1000))
    trainer = PaletteVAETrainer(model=str(BASE), args=arguments, train_dataset=traces)
    trainer.train()
    return PaletteForCausalLM.from_base(str(BASE), trainer.palette)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    questions = [problem.question for problem in generate_problems("validation", 8)]
    return tokenizer, tokenizer(questions, return_tensors="pt", padding=True, return_token_type_ids=False)


def test_draws_codes_and_domains_change_the_text(model, prompts):
    tokenizer, encoded = prompts
    width = encoded["input_ids"].shape[1]
    plain = model.generate(**encoded, max_new_tokens=48, do_sample=False)

    drawn = model.generate(**encoded, num_return_sequences=8, latent_seed=0, return_dict_in_generate=True, **LENGTH)
    texts = [tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in drawn.sequences.split(8)]
    assert sum(len(set(group)) > 1 for group in texts) >= 6  # of 8 prompts; greedy decoding alone gives one text each

    one, other = drawn.latent_codes[:2].tolist()
    assert one != other
    by_code = [model.generate(**encoded, latent=code, **LENGTH) for code in (one, other)]
    assert not torch.equal(by_code[0][:, width:], by_code[1][:, width:])
    assert not torch.equal(by_code[0][:, width:], plain[:, width:])

    # Which strategy a domain leads to is what SFT teaches (examples/benchmarks/countdown_seeds.py); here they differ.
    add, multiply = (model.generate(**encoded, domain=name, latent_seed=0, **LENGTH) for name in ("add", "multiply"))
    different = [
        left != right for left, right in zip(add[:, width:].tolist(), multiply[:, width:].tolist(), strict=True)
    ]
    assert sum(different) >= 4  # of 8 prompts
