"""What a palette must give on a vision-language family, against a stock base with the prefix spliced in by hand.

The reference is a copy of the base that knows nothing of palettes. Each of its rows is built without pads, without a
cache and without the base's own merging: rows of the input embedding, the vision tower's rows at the placeholders, the
prefix in front; then positions (of three axes where the family has them), masks, the features of deeper layers and the
per-layer inputs are written out by hand and handed to the language model alone.
"""

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from family_checks import TOLERANCE, apart, checkpoint, compare_reloaded, count, gradients_of, largest
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel
from vision_families import FAMILIES, ID, IMAGE, picture, tiny_base

from reasoning_palette.modeling_palette import PaletteForVision2Seq, PaletteVAE

# Text with {image} where images stand, and their sizes: one image, none, and two of different sizes.
ROWS = [
    ("w1 w2 {image} w3 w4", [(24, 16)]),
    ("w5 w6 w7", []),
    ("{image} w8 {image} w9 w10", [(16, 16), (12, 32)]),
]
LENGTH = 4
NEW_TOKENS = 6
DOMAIN = (1 << 20) + 5
CODES = torch.tensor([77, DOMAIN, 3])  # the prior's and a domain's
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
BIDIRECTIONAL = {"gemma3": ("full_attention", "sliding_attention"), "gemma4": ("sliding_attention",)}


@dataclass
class Case:
    """A stock base, a palette on a copy of it, and its processor's inputs, row by row and in one left-padded batch."""

    family: str
    base: PreTrainedModel
    model: PaletteForVision2Seq
    rows: list[dict[str, torch.Tensor]]
    batch: dict[str, torch.Tensor]

    def vectors(self, row: int) -> torch.Tensor:
        return self.model.palette.decode(self.model.latents_from_codes(CODES, LENGTH))[row]

    def with_prefix(self, inputs: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
        """Inputs with latent ids behind the left pads, and every other tensor over tokens widened by hand."""
        latent_ids = self.model.latent_ids(CODES, LENGTH)[rows].tolist()
        starts = [int(row.argmax()) for row in inputs["attention_mask"]]
        widened = dict(inputs)
        for name in PER_TOKEN:
            if name in inputs:
                fill = {"input_ids": latent_ids, "attention_mask": [[1] * LENGTH] * len(rows)}
                prefixes = fill.get(name, [[0] * LENGTH] * len(rows))
                values = [
                    row[:start] + prefix + row[start:]
                    for row, prefix, start in zip(inputs[name].tolist(), prefixes, starts, strict=True)
                ]
                widened[name] = torch.tensor(values, dtype=inputs[name].dtype)
        return widened

    def by_hand(
        self, row: int, answer: list[int] = (), base: PreTrainedModel | None = None, prefix: bool = True
    ) -> torch.Tensor:
        """Logits `(S, V)` of a row behind its prefix, with `answer` behind the prompt; without those of the prefix."""
        base = self.base if base is None else base
        inputs = self.rows[row]
        prompt = inputs["input_ids"][0].tolist()
        is_image = torch.tensor([token == ID[IMAGE] for token in prompt] + [False] * len(answer))
        embeddings = base.get_input_embeddings()(torch.tensor(prompt + list(answer)))
        deep = []
        if "pixel_values" in inputs:
            features, deep = image_features(base, inputs)
            embeddings = embeddings.index_put((is_image,), features)
        length = LENGTH if prefix else 0
        rows = torch.cat([self.vectors(row)[:length].to(embeddings), embeddings])
        is_image = torch.cat([torch.zeros(length, dtype=torch.bool), is_image])
        text = getattr(base.model, "language_model", None) or base.model.text_model
        extra: dict[str, Any] = {"attention_mask": None}
        if self.family in BIDIRECTIONAL:
            extra["attention_mask"] = gemma_masks(self.family, text.config, is_image)
        if deep:
            extra |= {"visual_pos_masks": is_image[None], "deepstack_visual_embeds": deep}
        if self.family == "gemma4":  # the per-layer table has rows of tokens; latents and images take the pad's
            ids = torch.tensor([0] * length + prompt + list(answer)).masked_fill(is_image, 0)
            extra["per_layer_inputs"] = text.embed_tokens_per_layer(ids).reshape(
                1, len(ids), text.config.num_hidden_layers, -1
            )
        if self.family in MROPE:
            positions = mrope(is_image.tolist(), inputs.get("image_grid_thw"))
        else:
            positions = torch.arange(len(rows))[None]
        hidden = text(inputs_embeds=rows[None], position_ids=positions, use_cache=False, **extra).last_hidden_state
        logits = base.lm_head(hidden[0, length:])
        cap = getattr(text.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()


def image_features(base: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Rows of all images of one row, and what is added to them behind the first layers (DeepStack)."""
    names = ("pixel_values", "image_grid_thw", "image_position_ids", "pixel_attention_mask")
    found = base.model.get_image_features(**{name: inputs[name] for name in names if name in inputs}, return_dict=True)
    features = joined(found.pooler_output)
    deep = [joined(each) for each in getattr(found, "deepstack_features", None) or []]
    return features.reshape(-1, features.shape[-1]), deep


def joined(rows: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """Rows of all images in one tensor; some families, and versions of transformers, have one an image."""
    return rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))


def mrope(is_image: list[bool], grids: torch.Tensor | None) -> torch.Tensor:
    """
    Positions `(3, 1, S)` of time, height and width. Text counts all three together; an image stands still in time, its
    rows and columns count from where it begins, and the text behind goes on after the longer side.
    """
    images = [] if grids is None else [(height // 2, width // 2) for _, height, width in grids.tolist()]
    found, at, token = [], 0, 0
    while token < len(is_image):
        if not is_image[token]:
            found.append([at] * 3)
            at, token = at + 1, token + 1
            continue
        height, width = images.pop(0)
        found += [[at, at + row, at + column] for row in range(height) for column in range(width)]
        at, token = at + max(height, width), token + height * width
    return torch.tensor(found).T[:, None]


def gemma_masks(family: str, config: Any, is_image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Causal masks in which the tokens of one image see each other: in all layers, or (Gemma 4) those of windows."""
    query, key = torch.arange(len(is_image))[:, None], torch.arange(len(is_image))
    begins = is_image & ~torch.cat([torch.tensor([False]), is_image[:-1]])
    number = begins.cumsum(0)
    same_image = is_image[:, None] & is_image & (number[:, None] == number)
    masks = {}
    for kind in ("full_attention", "sliding_attention"):
        seen = key <= query
        if kind in BIDIRECTIONAL[family]:
            seen = seen | same_image
        if kind == "sliding_attention":
            seen = seen & (query - key < config.sliding_window)
        masks[kind] = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    return masks


@functools.cache
def case_of(family: str) -> Case:
    base = tiny_base(family)
    palette = PaletteVAE(32, latent_dim=8, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.embedding_std.fill_(0.5)
    palette.fit_domain("math", torch.randn(30, 8) + 1)
    processor = FAMILIES[family].processor()
    texts = [text.format(image=FAMILIES[family].image) for text, _ in ROWS]
    images = [[picture(*size) for size in sizes] for _, sizes in ROWS]
    rows = [
        dict(processor(text=[text], images=[own] if own else None, return_tensors="pt"))
        for text, own in zip(texts, images, strict=True)
    ]
    batch = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    model = PaletteForVision2Seq.from_base(copy.deepcopy(base), palette, tokenizer=processor)
    return Case(family, base, model, rows, batch)


def unpadded(case: Case, model: PreTrainedModel, row: int, prefix: bool = True) -> torch.Tensor:
    """Logits `(S, V)` of a row on its own."""
    inputs = case.with_prefix(case.rows[row], [row]) if prefix else case.rows[row]
    return model(**inputs, use_cache=False).logits[0, LENGTH if prefix else 0 :]


@torch.no_grad()
def reference(family: str) -> float:
    """The hand-written reference without a prefix, against the base itself: it is what it says."""
    case = case_of(family)
    return largest(
        *(unpadded(case, case.base, row, False) - case.by_hand(row, prefix=False) for row in range(len(ROWS)))
    )


@torch.no_grad()
def forward(family: str) -> float:
    case = case_of(family)
    assert largest(case.by_hand(0) - case.by_hand(0, prefix=False)) > 1e-2, "the prefix does nothing"
    return largest(*(unpadded(case, case.model, row) - case.by_hand(row) for row in range(len(ROWS))))


@torch.no_grad()
def left_padding(family: str) -> float:
    """Logits of all rows in one left-padded batch."""
    case = case_of(family)
    inputs = case.with_prefix(case.batch, list(range(len(ROWS))))
    if family not in MROPE:  # as `generate` counts; the others count for themselves
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = case.model(**inputs, use_cache=False).logits
    rows = [row[mask.bool()][LENGTH:] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
    return largest(*(found - case.by_hand(row) for row, found in enumerate(rows)))


def greedy(case: Case, model: PreTrainedModel, **arguments: Any) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Answers to the batch, and their logits `(NEW_TOKENS, V)`, row by row."""
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True}
    output = model.generate(**case.batch, **settings, return_dict_in_generate=True, **arguments)
    width = case.batch["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :width], case.batch["input_ids"]), "the prompt came back otherwise"
    return output.sequences[:, width:].tolist(), list(torch.stack(output.logits, dim=1))


@torch.no_grad()
def generate(family: str) -> float:
    """Logits of cached greedy steps behind prefixes. Without a prefix, exactly what the base gives."""
    case = case_of(family)
    plain, logits = greedy(case, case.model)
    expected, base_logits = greedy(case, case.base)
    assert count(plain, expected) == 0 and all(map(torch.equal, logits, base_logits)), "L=0 is not the base"
    answers, logits = greedy(case, case.model, latent=CODES, num_prefix_tokens=LENGTH)
    steps = [case.by_hand(row, answer[:-1])[-NEW_TOKENS:] for row, answer in enumerate(answers)]
    return largest(*(found - by_hand for found, by_hand in zip(logits, steps, strict=True)))


@torch.no_grad()
def uncached(family: str) -> float:
    """Logits of `generate(use_cache=False)` behind prefixes, against those with a cache."""
    case = case_of(family)
    prefix = {"latent": CODES, "num_prefix_tokens": LENGTH}
    cached, logits = greedy(case, case.model, **prefix)
    answers, found = greedy(case, case.model, use_cache=False, **prefix)
    assert answers == cached
    return largest(*(one - other for one, other in zip(found, logits, strict=True)))


@torch.no_grad()
def reload(family: str) -> float:
    case = case_of(family)
    return reload_of_palette(case, case.base, case.model)


def reload_of_palette(case: Case, base: PreTrainedModel, model: PreTrainedModel) -> float:
    """
    Full and palette-only checkpoints through both auto classes: no key missing or unexpected, every tensor to the bit,
    the processor among them; the largest difference in the logits. Beside the palette, files hold the base's keys.
    """
    inputs = case.with_prefix(case.rows[2], [2])
    ids = inputs.pop("input_ids")
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(Path(folder) / "base")
        model.config.base_model_name_or_path = str(Path(folder) / "base")
        differences = []
        for palette_only, auto_class in ((False, AutoModelForImageTextToText), (True, AutoModel)):
            path = Path(folder) / f"palette_only_{palette_only}"
            model.save_pretrained(path, palette_only=palette_only)
            differences.append(compare_reloaded(path, model, ids, auto_class, **inputs))
            processor = auto_class.from_pretrained(path).processor
            assert type(processor) is type(model.processor), processor
        keys = {name for name in keys_of(path.with_name("palette_only_False")) if not name.startswith("palette.")}
        assert keys == keys_of(Path(folder) / "base")
    return max(differences)


def keys_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def loss_by_hand(case: Case, row: int, base: PreTrainedModel) -> torch.Tensor:
    """Of every token of the prompt but the first, which stands behind the prefix like the others."""
    logits = case.by_hand(row, base=base)
    return torch.nn.functional.cross_entropy(logits[:-1], case.rows[row]["input_ids"][0, 1:])


def gradients(family: str) -> float:
    return compare_gradients(family, with_checkpoints=False)


def checkpointing(family: str) -> float:
    return compare_gradients(family, with_checkpoints=True)


def compare_gradients(family: str, with_checkpoints: bool) -> float:
    """Loss and gradients of all weights for a row with two images; of gradients, relative to the largest."""
    case = case_of(family)
    base, model = copy.deepcopy(case.base).train(), copy.deepcopy(case.model).train()
    inputs = case.with_prefix(case.rows[2], [2])
    ids = inputs.pop("input_ids")
    labels = ids.clone()
    labels[:, LENGTH] = -100  # what the last token of the prefix predicts
    if with_checkpoints:
        checkpoint(model, ids, **inputs)
    loss = model(ids, labels=labels, use_cache=False, **inputs).loss
    expected = loss_by_hand(case, 2, base)
    return max(largest(loss - expected), apart(gradients_of(loss, model), gradients_of(expected, base)))


def resize(family: str) -> float:
    """As `forward` and `reload`, after four tokens were added to the vocabulary and one of them to the prompt."""
    case = case_of(family)
    model, base = copy.deepcopy(case.model), copy.deepcopy(case.base)
    size = len(case.model.processor.tokenizer) + 4
    model.resize_token_embeddings(size)
    base.resize_token_embeddings(size)
    weights = model.state_dict()
    base.load_state_dict({name: weights[name] for name in base.state_dict()})
    rows = [dict(row) for row in case.rows]
    rows[0]["input_ids"] = rows[0]["input_ids"].masked_fill(rows[0]["input_ids"] == ID["w3"], size - 1)
    changed = Case(family, base, model, rows, case.batch)
    with torch.no_grad():
        difference = largest(unpadded(changed, model, 0) - changed.by_hand(0))
        return max(difference, reload_of_palette(changed, base, model))


CHECKS: dict[str, Callable[[str], float]] = {
    "reference": reference,
    "forward": forward,
    "left padding": left_padding,
    "generate": generate,
    "uncached": uncached,
    "reload": reload,
    "gradients": gradients,
    "checkpointing": checkpointing,
    "resize": resize,
}


@functools.cache
def outcome(family: str, check: str) -> float:
    """
    Raises:
        AssertionError: if a palette fails a check.
    """
    difference = CHECKS[check](family)
    assert difference <= TOLERANCE, f"{family}, {check}: off by {difference:.2g}"
    return difference
