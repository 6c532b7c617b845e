"""The grounding example, run small from the first stage to the last."""

import importlib
import json

import pytest
import torch

pytest.importorskip("torchvision")

from reasoning_palette.evaluation.shapes import STRATEGIES
from reasoning_palette.evaluation.shapes_processor import build_processor

train_base, train_palette, train_sft, train_grpo, evaluate = (
    importlib.import_module(f"grounding.{stage}")
    for stage in ("01_train_base", "02_train_palette", "03_train_sft", "04_train_grpo", "05_evaluate")
)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def small(**changes):
    settings = {"hidden_size": 32, "num_layers": 1, "vision_hidden_size": 32, "vision_depth": 1, "max_steps": 8}
    return train_base.BaseArguments(**{**settings, "warmup_steps": 2, **changes})


def test_documents_are_chats_of_which_pictures_and_padding_are_no_targets(processor):
    tokenizer = processor.tokenizer
    args = small(max_steps=30)
    for batch in train_base.batches(processor, args):
        ids, labels = batch["input_ids"], batch["labels"]
        assert ((ids == processor.vision_start_token_id).sum(1) == 1).all()
        assert len(batch["image_grid_thw"]) == len(ids) <= args.tokens_per_batch // 50
        num_answers = (ids == tokenizer.convert_tokens_to_ids("<answer>")).sum(1)
        assert ((ids == tokenizer.eos_token_id).sum(1) == 2 * num_answers).all()  # questions and answers
        assert tokenizer.unk_token_id not in ids
        skipped = torch.tensor([processor.image_token_id, processor.vision_start_token_id, tokenizer.pad_token_id])
        assert (labels[torch.isin(ids, skipped)] == -100).all()
        text = ids != processor.vision_end_token_id
        text &= ~torch.isin(ids, skipped)
        assert (labels[text] == ids[text]).all()
        if len(ids) == args.tokens_per_batch // 50:  # one object: the first look finds it
            assert (num_answers == 1).all() and tokenizer.convert_tokens_to_ids("▁no") not in ids


def test_the_curriculum_grows_from_mostly_one_object_to_the_task():
    generator = train_base.random.Random(0)

    def shares(progress):
        drawn = [train_base.draw_num_objects(generator, progress) for _ in range(600)]
        return [drawn.count(number) / 600 for number in (1, 2, 3)]

    assert shares(0.1) == pytest.approx([0.7, 0.15, 0.15], abs=0.06)
    assert shares(0.25) == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=0.06)
    assert shares(0.375) == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=0.06)
    assert shares(0.5) == shares(1.0) == [0, 0, 1]


def test_the_text_of_a_document_is_that_of_the_chat_template(processor):
    generator = train_base.random.Random(0)
    context = train_base.draw_context(generator, stray_share=0.0)
    chat = [
        message
        for index, row in enumerate(context.traces)
        for message in (
            {
                "role": "user",
                "content": [{"type": "image"}] * (index == 0) + [{"type": "text", "text": row["question"]}],
            },
            {"role": "assistant", "content": row["reasoning"] + row["answer"]},
        )
    ]
    assert train_base.document_text(context) == processor.apply_chat_template(chat, tokenize=False)


def test_neighbouring_positions_are_alike():
    torch.manual_seed(0)
    positions = train_base.smooth_positions(10, 64).reshape(10, 10, 64)
    assert positions.std().item() == pytest.approx(0.5, rel=1e-3)

    def distance(rows, columns):
        a, b = positions[: 10 - rows, : 10 - columns], positions[rows:, columns:]
        return (a - b).square().sum(-1).sqrt().mean()

    assert distance(0, 1) < 0.6 * distance(0, 5) and distance(1, 0) < 0.6 * distance(5, 0)


def test_a_short_training_lowers_the_loss_and_repeats_with_the_seed(processor):
    args = small(max_steps=30, learning_rate=1e-2)

    def run():
        torch.manual_seed(args.seed)
        model = train_base.build_model(processor, args)
        return model, train_base.train(model, processor, args)

    (first, loss), (second, again) = run(), run()
    assert loss < 2.5 and loss == again  # an even guess costs log(49) = 3.9 nats
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def settings(stage, config_class, folder, **changes):
    quiet = {"output_dir": str(folder), "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    return config_class(**{**stage.DEMO_SETTINGS, **quiet, **changes})


def test_all_stages(processor, tmp_path):
    folders = {name: str(tmp_path / name) for name in ("base", "palette", "sft", "grpo")}
    torch.manual_seed(0)
    model = train_base.build_model(processor, small())
    model.save_pretrained(folders["base"])
    processor.save_pretrained(folders["base"])

    args = train_palette.PaletteArguments(base=folders["base"], num_traces=60)
    train_palette.main(args, settings(train_palette, train_palette.PaletteVAEConfig, folders["palette"], max_steps=5))
    args = train_sft.SFTArguments(model=folders["palette"], num_traces=8)
    changes = {"max_steps": 1, "per_device_train_batch_size": 4}
    train_sft.main(args, settings(train_sft, train_sft.PaletteSFTConfig, folders["sft"], **changes))
    args = train_grpo.GRPOArguments(model=folders["sft"], num_scenes=4)
    changes = {"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 4}
    train_grpo.main(args, settings(train_grpo, train_grpo.PaletteGRPOConfig, folders["grpo"], **changes))

    models = [folders["base"], folders["grpo"]]
    output = tmp_path / "evaluation"
    evaluate.main(
        evaluate.EvaluateArguments(
            model=models, output_dir=str(output), split="validation", num_problems=2, num_samples=2
        )
    )
    results = {name: json.loads((output / f"{name}-seed0.json").read_text()) for name in ("base", "grpo")}
    rows = {name: [row["method"]["name"] for row in result["methods"]] for name, result in results.items()}
    table_2 = ["greedy", "sampling", "latent, greedy", "latent + sampling"]
    assert rows["base"] == table_2[:2] and rows["grpo"][:4] == table_2
    assert sorted(rows["grpo"][4:]) == sorted(f"latents of {name}, greedy" for name in STRATEGIES)
    for row in results["grpo"]["methods"]:
        assert sum(row["grades"].values()) == 4  # two scenes, two samples, whatever the method
        assert sum(row["strategies"].values()) == pytest.approx(1)
