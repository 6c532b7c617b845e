"""Trainers of tiny vision-language models, and stock forwards of single rows to hold their log-probs against.

The reference is a stock base that has the decoded latents as rows of its own embedding table: an ordinary vocabulary,
one unpadded row at a time, with positions and token types written by hand and the row's own pixels.
"""

import copy

import torch
from datasets import Dataset
from rollout_records import stock_twin
from torch import nn
from trainer_testing import common_arguments, decoded_latents, tiny_palette
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer, prepare_multimodal_messages
from vision_families import FAMILIES, ID, WORDS, picture, tiny_base

from reasoning_palette.modeling_palette import PaletteForVision2Seq
from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteGRPOTrainer,
    PaletteRLOOConfig,
    PaletteRLOOTrainer,
    PaletteSFTConfig,
    PaletteSFTTrainer,
)

CLASSES = {
    "sft": (PaletteSFTTrainer, PaletteSFTConfig),
    "grpo": (PaletteGRPOTrainer, PaletteGRPOConfig),
    "rloo": (PaletteRLOOTrainer, PaletteRLOOConfig),
}
STOCK = {"sft": (SFTTrainer, SFTConfig), "grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
KEYWORDS = ("train_dataset", "eval_dataset", "peft_config", "processing_class", "palette", "data_collator")
USER, ASSISTANT = "w18", "w19"
LENGTH, GROUP = 3, 2
# Per device two rows, one group, so that some batches are of text alone; a generation is the whole dataset.
ROLLOUTS = {
    "num_generations": GROUP,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 6,
    "max_completion_length": 5,
    "beta": 0.0,
    # no image marks: a completion with them has no pixels
    "generation_kwargs": {"suppress_tokens": [id for token, id in ID.items() if token not in (*WORDS, "<eos>")]},
}
LATENTS = {"num_prefix_tokens": LENGTH, "latent_schedule": "constant", "latent_fraction": 0.5}
# An image, two of other sizes, text alone twice, another image, and two again.
NUM_IMAGES = (1, 2, 0, 0, 1, 2)


def processor_of(family):
    """The family's processor, with a chat template."""
    processor = FAMILIES[family].processor()
    processor.chat_template = (
        "{% for message in messages %}" + f"{{{{ '{USER} ' if message['role'] == 'user' else '{ASSISTANT} ' }}}}"
        "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{ASSISTANT} {{% endif %}}"
    ).replace("MARK", FAMILIES[family].image)
    return processor


def palette_vlm(family):
    return PaletteForVision2Seq.from_base(tiny_base(family), tiny_palette(), processor_of(family))


def vision_dataset(num_images=NUM_IMAGES, **columns):
    """Prompts of different lengths, no two alike, and their images, of different sizes."""
    rows = [
        {
            "prompt": [{"role": "user", "content": " ".join(WORDS[(row + i) % 17] for i in range(2 + row % 4))}],
            "images": [picture(16 + 8 * (row % 3), 24 - 8 * index) for index in range(count)],
            **{name: values(row) for name, values in columns.items()},
        }
        for row, count in enumerate(num_images)
    ]
    return Dataset.from_list(rows)


def answered_dataset(num_images=NUM_IMAGES):
    def completion(row):
        return [{"role": "assistant", "content": " ".join(WORDS[(3 * row + i) % 18] for i in range(2 + row % 3))}]

    return vision_dataset(num_images, completion=completion)


def distinct_words(completions, **kwargs):
    return [float(len(set(completion[0]["content"].split()))) for completion in completions]


def make_trainer(folder, method, family, model=None, stock=False, **settings):
    keywords = {name: settings.pop(name) for name in KEYWORDS if name in settings}
    if method == "sft":
        keywords = {"train_dataset": answered_dataset(), **keywords}
        defaults = {"per_device_train_batch_size": 3, "max_length": None, "max_steps": 2}
        defaults |= {} if stock else {"num_prefix_tokens": LENGTH}
    else:
        keywords = {"train_dataset": vision_dataset(), "reward_funcs": distinct_words, **keywords}
        defaults = {**ROLLOUTS, "max_steps": 2, "shuffle_dataset": False, **({} if stock else LATENTS)}
    if stock:
        keywords.setdefault("processing_class", processor_of(family))
    if model is None:
        model = tiny_base(family) if stock else palette_vlm(family)
    trainer_class, config_class = (STOCK if stock else CLASSES)[method]
    args = config_class(**common_arguments(folder, **{**defaults, **settings}))
    return trainer_class(model=model, args=args, **keywords)


class StockRows:
    """
    Log-probs and logits of rows by a stock base.

    Args:
        family (`str`): Of the base.
        model: The palette model whose latents are read.
        dataset: The rows' prompts and images.
        processor (*optional*): With the chat template of the prompts; `processor_of(family)` by default.
    """

    def __init__(self, family, model, dataset, processor=None):
        self.family, self.model = family, model
        self.processor = processor_of(family) if processor is None else processor
        self.base = tiny_base(family)
        self.images = {}
        for row in dataset:
            messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
            ids = self.processor.apply_chat_template(
                [messages], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"][0]
            self.images[tuple(ids)] = row["images"]

    def log_probs(self, policy, rows, temperature=1.0):
        """
        Args:
            policy: A palette model, or a `PeftModel` of one, with the weights to compute with.
            rows: (prompt ids, completion ids), unpadded, with latent ids.
            temperature (`float`): Divides the logits.

        Returns:
            Log-probs of each completion's tokens.
        """
        results = []
        for (prompt, completion), logits in zip(rows, self.logits(policy, rows), strict=True):
            scores = (logits / temperature).log_softmax(-1)
            first = len(prompt)
            results.append(torch.stack([scores[first + i - 1, token] for i, token in enumerate(completion)]))
        return results

    def logits(self, policy, rows):
        """Logits of rows, over the base's own vocabulary; arguments as for `log_probs`."""
        twin = stock_twin(policy, copy.deepcopy(self.base))
        ids = sorted({token for prompt, _ in rows for token in prompt if self._is_latent(token)})
        own = self._give_rows(twin, ids)
        results = []
        for prompt, completion in rows:
            images = self.images[tuple(token for token in prompt if not self._is_latent(token))]
            results.append(self._logits(twin, [own.get(token, token) for token in (*prompt, *completion)], images))
        return results

    def _is_latent(self, token):
        return token >= self.model.config.latent_id_base

    def _give_rows(self, twin, latent_ids):
        """Makes the latents words of the twin's own; returns their new ids."""
        embedding = twin.get_input_embeddings()
        size = len(embedding.weight)
        if latent_ids:
            # Gemma multiplies what it looks up; the palette's space is that of the embedding's output.
            rows = decoded_latents(self.model, latent_ids) / getattr(embedding, "embed_scale", 1.0)
            embedding.weight = nn.Parameter(torch.cat([embedding.weight.detach(), rows]))
            if self.family == "gemma4":  # to its per-layer embeddings a latent is a pad
                table = twin.model.language_model.embed_tokens_per_layer
                pads = table.weight.detach()[:1].expand(len(rows), -1)
                table.weight = nn.Parameter(torch.cat([table.weight.detach(), pads]))
        return {latent_id: size + index for index, latent_id in enumerate(latent_ids)}

    @torch.no_grad()
    def _logits(self, twin, ids, images):
        row, image_id = torch.tensor([ids]), ID["<image>"]
        inputs = {}
        if images:
            marks = " ".join([FAMILIES[self.family].image] * len(images))
            fields = self.processor(images=[images], text=[marks], return_tensors="pt")
            inputs = {name: value for name, value in fields.items() if name.startswith(("pixel_", "image_"))}
        if self.family.startswith("qwen"):
            grids = inputs["image_grid_thw"].tolist() if images else []
            positions = hand_positions(ids, image_id, [(height // 2, width // 2) for _, height, width in grids])
        else:
            positions = torch.arange(len(ids))[None]
        if self.family.startswith("gemma"):
            name = "token_type_ids" if self.family == "gemma3" else "mm_token_type_ids"
            inputs[name] = (row == image_id).long()
        return twin(input_ids=row, position_ids=positions, **inputs).logits[0]


def hand_positions(ids, image_id, grids):
    """
    M-RoPE positions (3, 1, S) of a row: time, height and width. Text counts on in all three; an image of h x w tokens
    stands still in time, counts its rows and columns, and the text behind it goes on after the largest of them.
    """
    columns, start, grids = [], 0, list(grids)
    index = 0
    while index < len(ids):
        if ids[index] != image_id:
            columns.append((start, start, start))
            start, index = start + 1, index + 1
            continue
        height, width = grids.pop(0)
        columns += [(start, start + y, start + x) for y in range(height) for x in range(width)]
        start, index = start + max(height, width), index + height * width
    assert not grids
    return torch.tensor(columns).T[:, None]
