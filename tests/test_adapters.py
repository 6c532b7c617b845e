"""Adapters beyond plain LoRA (see test_latent_consistency.py): on 4-bit weights, other kinds, and what is refused."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model_state_dict,
)
from rollout_trainers import generate, make_trainer, train_under_watch
from sft_trainers import documents_of, train_batch
from sft_trainers import make_trainer as sft_trainer
from trainer_testing import (
    LATENT,
    common_arguments,
    sft_dataset,
    snapshot,
    tiny_base,
    tiny_palette_model,
    tiny_tokenizer,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE
from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer

# 4-bit kernels work on blocks of 64 weights
WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 64, "num_attention_heads": 1}
LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


def wide_palette():
    torch.manual_seed(1)
    palette = PaletteVAE(64, latent_dim=LATENT, hidden_sizes=(64,))
    palette.trained.fill_(True)
    palette.embedding_std.fill_(0.2)
    return palette


def four_bit():
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes, which is no dependency")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def assert_scores_equal_spliced(trainer, stock, inputs):
    """
    Log-probs against a stock 4-bit model whose `inputs_embeds` hold the prefixes. The rows stay padded: bitsandbytes'
    CPU kernels round to bfloat16, differently for other shapes.
    """
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    is_latent, model = ids >= trainer.palette_model.config.latent_id_base, trainer.palette_model
    count = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        scores = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, count)[0]
        embeds = stock.get_input_embeddings()(ids.masked_fill(is_latent, 0))
        offsets = ids[is_latent] - model.config.latent_id_base
        codes, positions = offsets // model.config.max_prefix_tokens, offsets % model.config.max_prefix_tokens
        latents = model.latents_from_codes(codes, int(positions.max()) + 1)[range(len(codes)), positions]
        embeds[is_latent] = model.palette.decode(latents)
        logits = stock(inputs_embeds=embeds, attention_mask=mask).logits[:, -count - 1 : -1]
    expected = logits.log_softmax(-1).gather(2, inputs["completion_ids"][..., None])[..., 0]
    real = inputs["completion_mask"].bool()
    assert is_latent.any()
    torch.testing.assert_close(scores[real], expected[real], atol=1e-5, rtol=0)


def assert_four_bit_and_palette_untouched(trainer):
    base = trainer.palette_model
    assert type(base.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert not any("palette" in name for name, _ in trainer.model.named_parameters())
    expected = wide_palette().state_dict()
    for name, value in base.palette.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


@pytest.mark.filterwarnings("ignore:bitsandbytes")
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_rollouts_on_4_bit_weights(tmp_path, method):
    quantization = four_bit()
    tiny_base(**WIDE).save_pretrained(tmp_path / "base")
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=quantization, dtype=torch.float32
    )
    model = PaletteForCausalLM.from_base(tiny_base(**WIDE), palette=wide_palette(), tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path / "palette")
    trainer = make_trainer(
        tmp_path, method, str(tmp_path / "palette"), beta=0.1, learning_rate=1e-1, max_steps=3,
        quantization_config=quantization, peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    assert_four_bit_and_palette_untouched(trainer)
    inputs = generate(trainer)
    assert_scores_equal_spliced(trainer, stock, inputs)  # a fresh adapter adds nothing
    train_under_watch(trainer)
    assert_four_bit_and_palette_untouched(trainer)
    with trainer.model.disable_adapter():  # what the reference is
        assert_scores_equal_spliced(trainer, stock, inputs)
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "palette", quantization_config=quantization)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert base.latent_fingerprint() == trainer.palette_model.latent_fingerprint()
    saved, loaded = get_peft_model_state_dict(trainer.model), get_peft_model_state_dict(reloaded)
    assert saved
    assert all(torch.equal(loaded[name], value.float()) for name, value in saved.items())  # PEFT loads in float32


@pytest.mark.filterwarnings("ignore:bitsandbytes")
def test_sft_on_4_bit_weights(tmp_path):
    quantization = four_bit()
    tiny_base(**WIDE).save_pretrained(tmp_path / "base")
    arguments = {"max_steps": 3, "max_length": 32, "num_prefix_tokens": 3, "learning_rate": 1e-1}
    trainer = PaletteSFTTrainer(
        model=str(tmp_path / "base"),
        palette=wide_palette(),
        args=PaletteSFTConfig(**common_arguments(tmp_path, **arguments), latent_pairing="posterior"),
        train_dataset=sft_dataset(),
        processing_class=tiny_tokenizer(),
        quantization_config=quantization,
        peft_config=LoraConfig(**LORA),
    )
    assert_four_bit_and_palette_untouched(trainer)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert_four_bit_and_palette_untouched(trainer)
    assert all(not torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters() if name in weights)


@pytest.mark.parametrize(
    "peft_config",
    [
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        OFTConfig(target_modules="all-linear", oft_block_size=4),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ],
    ids=["ia3", "oft", "lora_and_head"],
)
def test_other_adapters(tmp_path, peft_config):
    trainer = make_trainer(tmp_path, "grpo", peft_config=peft_config, beta=0.1, learning_rate=1e-1, max_steps=3)
    base = snapshot(trainer.palette_model)
    train_under_watch(trainer)
    inputs = generate(trainer)
    assert (inputs["prompt_ids"] >= trainer.palette_model.config.latent_id_base).any()
    frozen = [name for name in base if name.endswith(("base_layer.weight", "norm.weight", "embed_tokens.weight"))]
    now = trainer.palette_model.state_dict()
    assert frozen
    assert all(torch.equal(now[name], base[name]) for name in frozen)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_virtual_tokens_have_the_sizes_of_the_base(tmp_path, kind):
    peft_config = kind(num_virtual_tokens=2)
    trainer = make_trainer(tmp_path, "grpo", peft_config=peft_config, beta=0.1, learning_rate=1e-1)
    base = snapshot(trainer.palette_model)
    train_under_watch(trainer)
    now = trainer.palette_model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in base.items())
    assert peft_config.token_dim is None


def test_virtual_tokens_stand_in_front_of_the_prefix(tmp_path):
    """PEFT embeds the ids itself, by the hooked embedding: the loss is that of hand-spliced rows."""
    trainer = sft_trainer(tmp_path, peft_config=PromptTuningConfig(num_virtual_tokens=2))
    batch = train_batch(trainer)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        virtual = trainer.model.get_prompt(batch_size=1)
        losses = []
        for ids, labels in documents_of(batch):
            rows = trainer.palette_model.get_input_embeddings()(torch.tensor([ids]))
            scores = tiny_base()(inputs_embeds=torch.cat([virtual, rows], dim=1)).logits[0, 2:].log_softmax(-1)
            losses += [-scores[index - 1, label] for index, label in enumerate(labels) if label != -100]
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["grpo", "rloo", "sft"])
def test_adapters_get_the_defaults_of_the_base(tmp_path, method):
    """PEFT has defaults for Qwen 3; `AutoPeftModel` needs a task type."""
    given = LoraConfig(r=2)
    if method == "sft":
        args = PaletteSFTConfig(**common_arguments(tmp_path, max_length=32))
        keywords = {"train_dataset": sft_dataset(), "processing_class": tiny_tokenizer(), "peft_config": given}
        trainer = PaletteSFTTrainer(tiny_palette_model(), args, **keywords)
    else:
        trainer = make_trainer(tmp_path, method, peft_config=given)
    adapter = trainer.model.peft_config["default"]
    assert adapter.target_modules == {"q_proj", "v_proj"}
    assert adapter.task_type == "CAUSAL_LM"
    assert (given.target_modules, given.task_type) == (None, None)


def test_adapters_that_would_be_saved_without_the_palette_are_refused(tmp_path, monkeypatch):
    # transformers 5.24 asks for PEFT 0.22, which came out later than it
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.2")
    model = tiny_palette_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"`model` holds adapters from `add_adapter`.*Pass `peft_config`"):
        make_trainer(tmp_path, "grpo", model)
