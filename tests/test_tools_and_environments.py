"""GRPO with tools and environments: over all turns a rollout has one prefix, in front, and the loss sees the same."""

import copy

import pytest
import torch
from chat_testing import chat_base, chat_palette_model
from datasets import Dataset
from rollout_records import stock_twin
from trainer_testing import assert_logps_equal_spliced, common_arguments, guided_counts

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig, PaletteGRPOTrainer

GROUP, LENGTH = 4, 3
CALL = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call><|im_end|>'
pytestmark = pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")


def multiply(a: int, b: int) -> int:
    """
    Multiplies two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The product.
    """
    return a * b


async def add(a: int, b: int) -> int:
    """
    Adds two integers.

    Args:
        a: The first integer.
        b: The second integer.

    Returns:
        The sum.
    """
    return a + b


def length_reward(completions, **kwargs):
    return [float(sum(len(message["content"]) for message in turns)) for turns in completions]


def grpo_trainer(folder, prompts=("What is 3*4?", "And 5 times 6, or their sum?"), **keywords):
    arguments = {
        "per_device_train_batch_size": 8,
        "num_generations": GROUP,
        "max_completion_length": 256,
        "max_steps": 2,
        "num_prefix_tokens": LENGTH,
        "latent_schedule": "constant",
        "latent_fraction": 0.5,
        "learning_rate": 1e-3,
    }
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts])
    return PaletteGRPOTrainer(
        model=chat_palette_model(),
        args=PaletteGRPOConfig(**common_arguments(folder, **arguments)),
        **{"train_dataset": dataset, "reward_funcs": length_reward, **keywords},
    )


def script(trainer, turns):
    """
    Has the model say what `turns` says, row by row of each call of `generate`: the rows run through the model, latent
    ids and all, and then the words are put in their place. Returns the unpadded rows of each call.
    """
    calls, original, tokenizer = [], trainer.palette_model.generate, trainer.processing_class

    def generate(input_ids, attention_mask, generation_config, **kwargs):
        rows = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask.bool(), strict=True)]
        short = copy.deepcopy(generation_config)
        short.max_new_tokens = 1
        original(input_ids=input_ids, attention_mask=attention_mask, generation_config=short, **kwargs)
        said = tokenizer([turns(len(calls), row) for row in range(len(rows))], padding=True, return_tensors="pt")
        calls.append(rows)
        return torch.cat([input_ids, said["input_ids"]], dim=1)

    tokenizer.padding_side = "right"
    trainer.palette_model.generate = generate
    return calls


def prefix_of(trainer, row):
    """The latent ids of a row, which stand in front and nowhere else."""
    id_base = trainer.palette_model.config.latent_id_base
    latent = [token for token in row if token >= id_base]
    assert row[: len(latent)] == latent
    assert len(latent) in (0, LENGTH)
    return latent


def generate_and_check(trainer, calls):
    """One generation with two turns. Returns its inputs for the loss."""
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    first, second = calls
    assert guided_counts(trainer, first, GROUP) == [2, 2]
    prefixes = [prefix_of(trainer, row) for row in first]
    assert len({tuple(prefix) for prefix in prefixes}) == 5  # four draws, and none
    # The second turn goes on from the first: same prefix, prompt, call, then the tool's answer.
    continued = [next(row for row in first if other[: len(row)] == row) for other in second]
    assert 0 < len(second) < len(first)
    for row, other in zip(continued, second, strict=True):
        assert prefix_of(trainer, other) == prefix_of(trainer, row)
    for row, ids, mask in zip(first, inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True):
        assert ids[mask].tolist() == row
    assert_logps_equal_spliced(trainer, trainer.model, stock_twin(trainer.model, chat_base()), inputs)
    return inputs


def test_tools(tmp_path):
    trainer = grpo_trainer(tmp_path, tools=[multiply, add])

    def turns(turn, row):
        if turn % 2:
            return "It is done.<|im_end|>"
        if row % GROUP == 3:
            return "I do not know.<|im_end|>"  # no call: this row ends with the first turn
        return CALL.format(name=["multiply", "add", "divide"][row % GROUP], arguments='{"a": 3, "b": 4}')

    calls = script(trainer, turns)
    inputs = generate_and_check(trainer, calls)
    tokenizer = trainer.processing_class
    for row, (ids, own) in enumerate(zip(inputs["completion_ids"], inputs["tool_mask"].bool(), strict=True)):
        results = tokenizer.decode(ids[~own])
        expected = ["12", "7", "Tool divide not found.", ""][row % GROUP]
        assert expected in results
        assert ("<tool_response>" in results) == (row % GROUP != 3)
        assert "tool_response" not in tokenizer.decode(ids[own], skip_special_tokens=True)
    metrics = trainer._metrics["train"]
    assert metrics["tools/call_frequency"] == [0.75]
    assert metrics["tools/failure_frequency"] == [pytest.approx(1 / 3)]
    trainer.train()
    assert trainer.state.global_step == 2


def test_calls_that_do_not_fit_are_dropped_and_the_prefix_stays(tmp_path):
    trainer = grpo_trainer(tmp_path, tools=[multiply])
    trainer.max_completion_length = 80  # room for the call, not for its result
    calls = script(trainer, lambda turn, row: CALL.format(name="multiply", arguments='{"a": 3, "b": 4}'))
    trainer.model.train()
    trainer.state.max_steps = 2
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert len(calls) == 1
    for row, ids, mask in zip(calls[0], inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True):
        assert ids[mask].tolist() == row
    assert inputs["tool_mask"].all()


class Counter:
    """Counts up to a target."""

    def reset(self, **kwargs) -> str:
        self.value = 0
        return " Count to 3."

    def step(self, by: int) -> str:
        """
        Counts.

        Args:
            by: How far.

        Returns:
            The count.
        """
        self.value += by
        return f"count {self.value}"

    def get_reward(self) -> float:
        return float(self.value)


class Echo:
    """Says what it is told."""

    def reset(self, **kwargs) -> None:
        self.said = ""

    def say(self, text: str) -> str:
        """
        Echoes.

        Args:
            text: What to say.

        Returns:
            The text.
        """
        self.said = text
        return text


@pytest.mark.parametrize("several", [False, True])
def test_environments(tmp_path, several):
    def turns(turn, row):
        if turn % 2 or row % GROUP == 3:
            return "Done.<|im_end|>"
        if several and row >= GROUP:
            return CALL.format(name="say", arguments='{"text": "hi"}')
        return CALL.format(name="step", arguments=f'{{"by": {row % GROUP + 1}}}')

    keywords = {"environment_factory": Counter, "reward_funcs": None, "train_dataset": None}
    if several:
        rows = [
            {"environment": name, "prompt": [{"role": "user", "content": text}]}
            for name, text in (("counter", "Go."), ("echo", "Say hi, please."))
        ]
        keywords = {
            "environment_factory": {"counter": Counter, "echo": Echo},
            "train_dataset": Dataset.from_list(rows).cast_column(
                "environment", Dataset.from_list(rows).features["environment"]
            ),
        }
    trainer = grpo_trainer(tmp_path, **keywords)
    trainer.shuffle_dataset = False  # the script speaks row by row
    calls = script(trainer, turns)
    if several:
        inputs = generate_and_check(trainer, calls)
        names = [trainer.processing_class.decode(row[LENGTH:]) for row in calls[0]]
        assert ["step" in name for name in names] == [True] * GROUP + [False] * GROUP  # each prompt has its own tools
        assert len(inputs["advantages"]) == 8
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert entry["rewards/Counter/mean"] == pytest.approx((1 + 2 + 3 + 0) / 4)
    assert trainer.state.global_step == 2
