"""SFT, GRPO and RLOO on vision-language models: images, several of them, and rows of text among rows with images."""

import re

import pytest

pytest.importorskip("torchvision")

import torch
from datasets import Dataset
from peft import LoraConfig
from rollout_records import RolloutRecord
from trainer_testing import assert_same_weights, record_generations, snapshot, tiny_palette
from training_records import assert_identical, train_and_record
from transformers import LlavaProcessor
from vision_families import ID, WORDS, picture, tiny_base
from vision_trainers import (
    LENGTH,
    StockRows,
    answered_dataset,
    make_trainer,
    processor_of,
    vision_dataset,
)

from reasoning_palette.modeling_palette import PaletteForVision2Seq
from reasoning_palette.trainers.message_images import images_to_column

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm"]
# Qwen3.5's linear attention rounds otherwise in a padded batch than in a single row, with a prefix or without.
OTHERS = {"qwen3_5": 1e-4, "gemma4": 1e-5, "llava": 1e-5, "idefics3": 1e-5, "internvl": 1e-5}
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def padding_right(family):
    processor = processor_of(family)
    processor.tokenizer.padding_side = "right"
    return processor


def largest_error(folder, method, family, **settings):
    trainer = make_trainer(folder, method, family, num_iterations=2, beta=0.1, **settings)
    stock = StockRows(family, trainer.palette_model, trainer.train_dataset, trainer.processing_class)
    record = RolloutRecord(trainer, reference=lambda model, rows: stock.log_probs(model, rows, trainer.temperature))
    trainer.train()
    return record.check(num_iterations=2)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_single_stock_rows(tmp_path, method, family):
    """Of the loss, of the policy at the rollout and of the reference, each under the rollout's own prefix."""
    assert largest_error(tmp_path, method, family) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_log_probs_of_other_families(tmp_path, family):
    assert largest_error(tmp_path, "grpo", family) <= OTHERS[family]


@pytest.mark.parametrize(("method", "family"), [("grpo", "gemma3"), ("rloo", "qwen3_vl")])
def test_log_probs_of_adapters(tmp_path, method, family):
    """The reference is the base without the adapter."""
    assert largest_error(tmp_path, method, family, peft_config=LoraConfig(**LORA)) <= 1e-5


def test_log_probs_with_a_processor_that_pads_on_the_right(tmp_path):
    processor = padding_right("gemma3")
    assert largest_error(tmp_path, "grpo", "gemma3", processing_class=processor) <= 1e-5
    assert processor.tokenizer.padding_side == "right"


def test_log_probs_of_a_prefix_behind_bos(tmp_path):
    processor = processor_of("gemma3")
    processor.chat_template = "<bos> " + processor.chat_template
    model = PaletteForVision2Seq.from_base(tiny_base("gemma3"), tiny_palette(), processor, prefix_position="after_bos")
    assert largest_error(tmp_path, "grpo", "gemma3", model=model, processing_class=processor) <= 1e-5


def test_batches_shared_out_between_steps(tmp_path):
    """Two generations of half of the rows each, in more batches than accumulation steps."""
    error = largest_error(
        tmp_path, "grpo", "smolvlm", steps_per_generation=3, gradient_accumulation_steps=2, max_steps=6
    )
    assert error <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_loss_is_that_of_single_stock_rows(tmp_path, family):
    trainer = make_trainer(tmp_path, "sft", family)
    model = trainer.palette_model
    model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    rows = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
        first = next(index for index, label in enumerate(labels) if label != -100)
        assert torch.equal(labels[first:][mask[first:]], ids[first:][mask[first:]])  # the completion, all of it
        rows.append((tuple(ids[:first][mask[:first]].tolist()), tuple(ids[first:][mask[first:]].tolist())))
        assert sum(token >= model.config.latent_id_base for token in rows[-1][0]) == LENGTH
    log_probs = StockRows(family, model, trainer.train_dataset).log_probs(model, rows)
    expected = -torch.cat(log_probs).mean()
    torch.testing.assert_close(trainer.compute_loss(model, batch).detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "family"), [("sft", "smolvlm"), ("grpo", "qwen2_5_vl"), ("rloo", "internvl")])
def test_no_prefix_is_stock(tmp_path, method, family):
    # TRL's own rollouts have no rows of text among rows with images
    dataset = answered_dataset() if method == "sft" else vision_dataset((1, 2, 1, 1, 2, 1))
    settings = {"train_dataset": dataset, "max_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": dataset, "per_device_eval_batch_size": 6}
    stock = train_and_record(make_trainer(tmp_path, method, family, stock=True, **settings))
    ours = train_and_record(make_trainer(tmp_path, method, family, **settings, num_prefix_tokens=0))
    assert_identical(ours, stock)


@pytest.mark.parametrize(("method", "family"), [("sft", "qwen2_5_vl"), ("grpo", "smolvlm"), ("rloo", "gemma3")])
def test_resumed_run_is_the_unbroken_one(tmp_path, method, family):
    """Also where weights have other names in the files (Qwen2.5-VL, Gemma 3); transformers' Trainer drops those."""
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path, method, family, **settings)
    before = snapshot(whole.palette_model)
    whole.train()
    resumed = make_trainer(tmp_path, method, family, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same_weights(resumed.model, whole.model)
    for name, tensor in whole.palette_model.state_dict().items():
        is_frozen = name.startswith("palette.")
        assert not is_frozen or torch.equal(tensor, before[name]), name
    assert any(not torch.equal(p, before[name]) for name, p in whole.model.named_parameters())


@pytest.mark.parametrize("latent_eval", [False, True])
def test_evaluation(tmp_path, latent_eval):
    trainer = make_trainer(tmp_path, "grpo", "gemma3", eval_dataset=vision_dataset(), latent_eval=latent_eval)
    calls = record_generations(trainer)
    trainer.evaluate()
    prompts = [prompt for training, _, ids in calls for prompt in ids if not training]
    latents = [sum(token >= trainer.palette_model.config.latent_id_base for token in prompt) for prompt in prompts]
    assert latents == [LENGTH if latent_eval else 0] * len(prompts) != []


@pytest.mark.parametrize(("method", "family"), [("sft", "gemma3"), ("grpo", "qwen2_5_vl")])
def test_washout_monitor_sees_the_images(tmp_path, method, family):
    """The sensitivity before training is the divergence of the stock rows' distributions of the first answer token."""
    trainer = make_trainer(tmp_path, method, family, max_steps=1)
    model, prefixes = trainer.palette_model, trainer._monitor_prefixes.tolist()
    stock = StockRows(family, model, trainer.train_dataset)
    divergences = []
    for prompt in list(stock.images)[: len(trainer._monitor_prompts)]:
        logits = stock.logits(model, [((*prefix, *prompt), ()) for prefix in prefixes])
        log_probs = torch.stack([row[-1].log_softmax(-1) for row in logits])
        mixture = log_probs.exp().mean(0)
        divergences.append((log_probs.exp() * (log_probs - mixture.log())).sum(-1).mean())
    trainer.train()
    logged = next(entry["latent/sensitivity"] for entry in trainer.state.log_history if "latent/sensitivity" in entry)
    assert logged == pytest.approx(torch.stack(divergences).mean().item(), abs=1e-5)


def assert_card_runs(folder):
    """The card's quick start, with the folder for the repository and a picture in it."""
    code = re.search(r"## Quick start\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    picture(20, 24).save(folder / "picture.png")
    code = re.sub(r'^repo = ".*"$', f'repo = "{folder}"', code, flags=re.MULTILINE)
    code = code.replace("picture.png", str(folder / "picture.png")).replace("max_new_tokens=64", "max_new_tokens=3")
    assert "AutoModelForImageTextToText" in code
    exec(code, {})


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_column_of_single_images_and_a_palette_for_a_base(tmp_path, method):
    dataset = answered_dataset((1, 1, 1, 1)) if method == "sft" else vision_dataset((1, 1, 1, 1))
    dataset = dataset.map(lambda row: {"image": row["images"][0]}, remove_columns="images")
    settings = {"train_dataset": dataset, "palette": tiny_palette(), "processing_class": processor_of("llava")}
    settings |= {"max_steps": 1} if method == "sft" else {"max_steps": 1, "gradient_accumulation_steps": 4}
    trainer = make_trainer(tmp_path, method, "llava", model=tiny_base("llava"), **settings)
    assert isinstance(trainer.palette_model, PaletteForVision2Seq)
    before = snapshot(trainer.palette_model)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    saved = PaletteForVision2Seq.from_pretrained(tmp_path)
    assert isinstance(saved.processor, LlavaProcessor)
    assert_same_weights(saved, trainer.model)
    assert any(not torch.equal(p, before[name]) for name, p in saved.named_parameters())
    assert_card_runs(tmp_path)


def test_posterior_pairing_pools_words_alone(tmp_path):
    trainer = make_trainer(tmp_path, "sft", "internvl", latent_pairing="posterior")
    pool, pooled = trainer.palette_model.pool_traces, []
    trainer.palette_model.pool_traces = lambda rows: pooled.extend(rows) or pool(rows)
    trainer.train()
    decoded = [trainer._tokenizer.convert_ids_to_tokens(row) for row in pooled]
    assert len(decoded) == 6
    assert all(set(row) <= set(WORDS) for row in decoded)


def test_a_generation_of_text_alone(tmp_path):
    trainer = make_trainer(tmp_path, "grpo", "qwen3_vl", train_dataset=vision_dataset((0,) * 6), max_steps=1)
    calls = record_generations(trainer)
    trainer.train()
    assert sum(len(ids) for _, _, ids in calls) == 12


def test_best_model_is_loaded_at_the_end(tmp_path):
    """Of a family whose weights have other names in the files."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    # The loss falls, and the first checkpoint is called the best.
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make_trainer(tmp_path, "sft", "gemma3", eval_dataset=answered_dataset(), **settings)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert_same_weights(PaletteForVision2Seq.from_pretrained(tmp_path / "checkpoint-1"), trainer.model)


@pytest.fixture
def named_images(tmp_path):
    """Prompts whose messages name a file each, with or without limits."""

    def build(prefix="file://", **limits):
        rows = []
        for number in range(6):
            path = tmp_path / f"{number}.png"
            picture(20 + 4 * number, 24).save(path)
            parts = [{"type": "image", "image": f"{prefix}{path}", **limits}, {"type": "text", "text": WORDS[number]}]
            answer = [{"role": "assistant", "content": [{"type": "text", "text": WORDS[9]}]}]
            rows.append({"prompt": [{"role": "user", "content": parts}], "completion": answer})
        return Dataset.from_list(rows)

    return build


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_images_named_in_messages(tmp_path, named_images, method):
    processor = processor_of("qwen2_5_vl")
    dataset = images_to_column(named_images(max_pixels=256), processor)
    trainer = make_trainer(tmp_path, method, "qwen2_5_vl", train_dataset=dataset, max_steps=1)
    trainer.train()
    # 256 pixels are 16 patches of 4 x 4, merged by four; without the limit each image has more.
    places = [prompt.count(ID["<image>"]) for prompt in trainer._monitor_prompts]
    assert places
    assert max(places) <= 4 < len(processor(images=[picture(20, 24)], text=["<image>"])["input_ids"][0])


@pytest.mark.parametrize("method", ["sft", "rloo"])
def test_images_that_would_be_dropped_are_refused(tmp_path, named_images, method):
    dataset = named_images(max_pixels=256) if method == "rloo" else named_images(prefix="")
    message = "with max_pixels, which chat templates leave out" if method == "rloo" else "so TRL takes it for text"
    with pytest.raises(ValueError, match=rf"{message}.* `images_to_column\(dataset, processor\)`"):
        make_trainer(tmp_path, method, "qwen2_5_vl", train_dataset=dataset)


@pytest.mark.parametrize("setting", [{"packing": True}, {"padding_free": True}])
def test_what_trl_refuses_stays_refused(tmp_path, setting):
    message = "not supported for vision datasets"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, "sft", "llava", **setting)
