"""The usages that TRL's documentation shows for the three trainers, with only the class and the config swapped.

Ids of the Hub become a local palette checkpoint and local data of the documented format. `SHORT` is what a test adds
to a config: no GPU, one step.
"""

import asyncio
import json
import re

import pytest
import torch
import trl
from chat_testing import byte_tokenizer, chat_base, chat_palette_model, chat_tokenizer
from datasets import Dataset, load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from rollout_trainers import GROUP
from trainer_testing import tiny_palette
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from trl.rewards import accuracy_reward

from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)

ROLLOUT_TRAINERS = pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(PaletteGRPOTrainer, PaletteGRPOConfig), (PaletteRLOOTrainer, PaletteRLOOConfig)],
    ids=["grpo", "rloo"],
)
SHORT = {"use_cpu": True, "report_to": "none", "max_steps": 1, "logging_steps": 1, "disable_tqdm": True}
SHORT_ROLLOUTS = {**SHORT, "max_completion_length": 8, "num_generations": GROUP, "per_device_train_batch_size": 8}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def save_checkpoint(folder, palette_only):
    """A checkpoint under the name of a model. A palette-only one reads its base from another folder."""
    model = chat_palette_model()
    chat_base().save_pretrained("base")
    chat_tokenizer().save_pretrained("base")
    model.config.base_model_name_or_path = str(folder / "base")
    model.save_pretrained("palette-0.1B", palette_only=palette_only)
    return "palette-0.1B"


@pytest.fixture
def model_id(tmp_path):
    return save_checkpoint(tmp_path, palette_only=True)


@pytest.fixture(params=["full", "palette_only"])
def any_model_id(request, tmp_path):
    return save_checkpoint(tmp_path, palette_only=request.param == "palette_only")


def local_dataset(rows):
    """A dataset as `load_dataset` gives it for an id of the Hub."""
    with open("data.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return load_dataset("json", data_files="data.jsonl", split="train")


def chat(*turns):
    return [{"role": ["user", "assistant"][index % 2], "content": text} for index, text in enumerate(turns)]


def conversations():
    return local_dataset([{"messages": chat("Hi", "Hello."), "source": "a"}, {"messages": chat("1+1?", "2")}] * 8)


def math_problems():
    rows = [{"prompt": chat("What is 1+1?"), "solution": "2"}, {"prompt": chat("And 2+3?"), "solution": "5"}]
    return local_dataset(rows * 4)


def texts():
    math = {"prompt": "What is 2+2?", "ground_truth": "4", "task": "math"}
    code = {"prompt": "Write a function.", "ground_truth": "", "task": "code"}
    return Dataset.from_list([math, code] * 4)


def assert_trained(trainer, key="loss"):
    """Latents were on, and a step was taken."""
    assert trainer.args.num_prefix_tokens > 0
    assert any(key in entry for entry in trainer.state.log_history)
    assert any("latent/sensitivity" in entry for entry in trainer.state.log_history)


# SFT


def test_sft_quick_start(any_model_id):
    trainer = PaletteSFTTrainer(
        model=any_model_id,
        train_dataset=conversations(),
        args=PaletteSFTConfig(**SHORT),
    )
    trainer.train()
    assert_trained(trainer)


def test_trainers_without_a_config(model_id, monkeypatch):
    """The documented quick starts pass none. Only built here: the defaults are for a GPU's time."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = PaletteSFTTrainer(model=model_id, train_dataset=conversations())
    assert (trainer.args.output_dir, trainer.args.max_steps) == ("palette-0.1B-SFT", 10)
    for trainer_class, suffix in ((PaletteGRPOTrainer, "GRPO"), (PaletteRLOOTrainer, "RLOO")):
        trainer = trainer_class(model=model_id, reward_funcs=reward_distinct_letters, train_dataset=math_problems())
        assert (trainer.args.output_dir, trainer.args.num_prefix_tokens) == (f"palette-0.1B-{suffix}", 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True},
        {"assistant_only_loss": True},
        {"model_init_kwargs": {"dtype": torch.bfloat16}},
        {"eval_strategy": "steps", "eval_steps": 1},
        {"gradient_checkpointing": False, "bf16": False},
    ],
)
def test_sft_settings(model_id, settings):
    dataset = conversations()
    trainer = PaletteSFTTrainer(
        model=model_id,
        args=PaletteSFTConfig(**SHORT, **settings),
        train_dataset=dataset,
        eval_dataset=dataset if "eval_steps" in settings else None,
    )
    trainer.train()
    assert_trained(trainer, "eval_loss" if "eval_steps" in settings else "loss")


def test_sft_with_an_adapter_and_going_on_with_it(model_id):
    trainer = PaletteSFTTrainer(
        model_id, PaletteSFTConfig("adapter", **SHORT), train_dataset=conversations(), peft_config=LoraConfig()
    )
    trainer.train()
    trainer.save_model()
    model = AutoPeftModelForCausalLM.from_pretrained("adapter", is_trainable=True)
    trainer = PaletteSFTTrainer(model=model, args=PaletteSFTConfig(**SHORT), train_dataset=conversations())
    trainer.train()
    assert_trained(trainer)


@pytest.mark.parametrize("adapter", [False, True])
def test_sft_of_a_base_into_an_instruction_model(adapter):
    """A chat template from elsewhere with tokens that the base lacks: the embedding is resized under the palette."""
    chat_tokenizer().save_pretrained("instruct")
    chat_base(vocab_size=257, pad_token_id=256, eos_token_id=256).save_pretrained("base")
    byte_tokenizer().save_pretrained("base")
    build = lambda: PaletteSFTTrainer(  # noqa: E731
        model="base",
        palette=tiny_palette(),
        args=PaletteSFTConfig(chat_template_path="instruct", bf16=False, **SHORT),
        train_dataset=conversations(),
        peft_config=LoraConfig() if adapter else None,
    )
    if adapter:  # TRL then trains the new tokens alone, by an adapter on the embedding
        with pytest.raises(ValueError, match="new tokens of `chat_template_path`"):
            build()
        return
    trainer = build()
    trainer.train()
    assert_trained(trainer)
    model = trainer.palette_model
    assert len(model.get_input_embeddings().weight) > 257
    codes = model.draw_codes(4)
    rows, expected = model.get_input_embeddings()(model.latent_ids(codes, 2)), model.latents_from_codes(codes, 2)
    torch.testing.assert_close(rows, model.palette.decode(expected))


def test_sft_on_tool_calls(model_id):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    messages = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
    dataset = Dataset.from_list([{"messages": messages, "tools": json.dumps([tool])}] * 8)
    trainer = PaletteSFTTrainer(model=model_id, args=PaletteSFTConfig(**SHORT), train_dataset=dataset)
    trainer.train()
    assert_trained(trainer)
    assert "<tool_call>" in chat_tokenizer().decode(trainer.train_dataset[0]["input_ids"])


# GRPO and RLOO


def reward_distinct_letters(completions, **kwargs):
    return [float(len(set(completion[0]["content"]))) for completion in completions]


@ROLLOUT_TRAINERS
def test_rollouts_quick_start(any_model_id, trainer_class, config_class):
    """With RLOO's default `beta` too, for which TRL loads the reference by the checkpoint's name."""
    trainer = trainer_class(
        model=any_model_id,
        reward_funcs=reward_distinct_letters,
        train_dataset=math_problems(),
        args=config_class(**SHORT_ROLLOUTS),
    )
    trainer.train()
    assert_trained(trainer, "reward")
    assert (trainer.ref_model is not None) == (config_class is PaletteRLOOConfig)


@ROLLOUT_TRAINERS
def test_rollouts_with_the_accuracy_reward(model_id, trainer_class, config_class):
    trainer = trainer_class(
        model=model_id,
        reward_funcs=accuracy_reward,
        train_dataset=math_problems(),
        args=config_class(**SHORT_ROLLOUTS),
    )
    trainer.train()
    assert_trained(trainer, "rewards/accuracy_reward/mean")


def longer_in_tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def longer_in_letters(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def boxed(completions, ground_truth, **kwargs):
    found = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    return [float(bool(match) and match.group(1) == truth) for match, truth in zip(found, ground_truth, strict=True)]


def math_only(prompts, completions, task, **kwargs):
    return [float("4" in text) if kind == "math" else None for text, kind in zip(completions, task, strict=True)]


def code_only(prompts, completions, task, **kwargs):
    return [float("def" in text) if kind == "code" else None for text, kind in zip(completions, task, strict=True)]


async def not_empty(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return [float(bool(completion)) for completion in completions]


def with_logging(completions, log_extra=None, log_metric=None, **kwargs):
    log_extra("letters", [len(completion) for completion in completions])
    log_metric("empty", sum(not completion for completion in completions) / len(completions))
    return [0.0] * len(completions)


@ROLLOUT_TRAINERS
def test_reward_functions_of_the_documentation(model_id, trainer_class, config_class):
    functions = [longer_in_tokens, longer_in_letters, boxed, math_only, code_only, not_empty, with_logging]
    trainer = trainer_class(
        model=model_id,
        reward_funcs=functions,
        args=config_class(**SHORT_ROLLOUTS, reward_weights=[0.5] * len(functions)),
        train_dataset=texts(),
    )
    trainer.train()
    assert_trained(trainer, "empty")
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert {f"rewards/{function.__name__}/mean" for function in functions} <= entry.keys()


def format_reward(completions, **kwargs):
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    return [float(bool(re.match(pattern, completion[0]["content"]))) for completion in completions]


@ROLLOUT_TRAINERS
def test_reward_model_by_its_name_beside_a_function(model_id, trainer_class, config_class):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_labels": 1}
    tokenizer = chat_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads, pad_token_id=tokenizer.pad_token_id)
    Qwen3ForSequenceClassification(config).save_pretrained("reward-model")
    tokenizer.save_pretrained("reward-model")
    trainer = trainer_class(
        model=model_id,
        reward_funcs=["reward-model", format_reward],
        args=config_class(**SHORT_ROLLOUTS),
        train_dataset=math_problems(),
    )
    trainer.train()
    assert_trained(trainer, "rewards/reward-model/mean")


def multiply(a: int, b: int) -> int:
    """
    Multiplies two integers.

    Args:
        a: One.
        b: Another.

    Returns:
        The product.
    """
    return a * b


def test_grpo_with_tools(model_id):
    trainer = PaletteGRPOTrainer(
        model=model_id,
        tools=[multiply],
        reward_funcs=reward_distinct_letters,
        train_dataset=math_problems(),
        args=PaletteGRPOConfig(
            **SHORT_ROLLOUTS, chat_template_kwargs={"enable_thinking": False}, log_completions=True
        ),
    )
    trainer.train()
    assert_trained(trainer, "tools/call_frequency")


@ROLLOUT_TRAINERS
def test_rollouts_with_an_adapter(model_id, trainer_class, config_class, tmp_path):
    trainer = trainer_class(
        model=model_id,
        args=config_class("adapter", **SHORT_ROLLOUTS, learning_rate=1e-2, bf16=False),
        reward_funcs=reward_distinct_letters,
        train_dataset=math_problems(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian"),
    )
    trainer.train()
    assert_trained(trainer)
    trainer.save_model()
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_id), "adapter").eval()
    ids = torch.cat([trainer.palette_model.latent_ids(torch.tensor([7]), 2), torch.tensor([[5, 6, 7]])], dim=1)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, reloaded(input_ids=ids).logits)


# TRL's own command line scripts


@pytest.mark.parametrize("method", ["sft", "grpo", "rloo"])
def test_trls_own_scripts(any_model_id, method, monkeypatch):
    """`trl sft`, `trl grpo` and `trl rloo`: the script as it is, in whose namespace the two names are ours."""
    classes = {
        "sft": (PaletteSFTTrainer, PaletteSFTConfig),
        "grpo": (PaletteGRPOTrainer, PaletteGRPOConfig),
        "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig),
    }
    trainers = []

    class Watched(classes[method][0]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(trl, f"{method.upper()}Trainer", Watched)
    monkeypatch.setattr(trl, f"{method.upper()}Config", classes[method][1])
    script = __import__(f"trl.scripts.{method}", fromlist=["main"])
    (conversations if method == "sft" else math_problems)().to_json("local/train.jsonl")
    line = f"--model_name_or_path {any_model_id} --dataset_name local --output_dir out --logging_steps 1 --use_cpu "
    line += "--report_to none --max_steps 1 --bf16 False --num_prefix_tokens 2 "
    line += "--use_peft --lora_target_modules all-linear "
    if method != "sft":
        with open("my_rewards.py", "w") as file:
            file.write("def letters(completions, **kwargs):\n    return [float(len(str(c))) for c in completions]\n")
        line += "--reward_funcs my_rewards.letters --max_completion_length 8 --num_generations 4 "
        line += '--latent_schedule constant --latent_domain {"math":0.5,"code":0.5}'
    parsed = script.make_parser().parse_args_and_config(line.split(), fail_with_unknown_args=False)
    script.main(*parsed)
    assert_trained(trainers[0])
    assert (trainers[0].args.output_dir, trainers[0].args.num_prefix_tokens) == ("out", 2)
    adapter = AutoPeftModelForCausalLM.from_pretrained("out")
    assert adapter.get_base_model().latent_fingerprint() == trainers[0].palette_model.latent_fingerprint()
