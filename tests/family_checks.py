"""What a palette must give on a family, each against a stock base with the prefix spliced in by hand.

The reference is a copy of the base, made before a palette is put on it: it reads no latent ids. The prefix enters it
as `inputs_embeds`, row by row, without pads and without a cache; or, for the families of `text_families.THROUGH_HOOK`,
by a hook that overwrites the first L rows of the input embedding's output, under ids of pads.

Where a check fails, the base is put through the same without a palette. If it fails as well, nothing can be expected
of a palette, and the outcome says what the base did.
"""

import copy
import functools
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from text_families import THROUGH_HOOK, tiny_base
from transformers import AutoModelForCausalLM, PreTrainedModel

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3, 4, 5, 6, 7, 20, 21, 22, 23, 24, 25]]
LENGTH = 4
NEW_TOKENS = 6
TOLERANCE = 1e-5
CODES = torch.tensor([77, (1 << 20) + 5])  # the prior's and a domain's


@dataclass
class Outcome:
    """The largest difference that a check found; or `None`, and what the base does without a palette."""

    difference: float | None
    base_alone: str = ""


@dataclass
class Case:
    """A stock base, and a palette on a copy of it."""

    base: PreTrainedModel
    model: PaletteForCausalLM
    through_hook: bool

    def by_hand(self, row: int, tokens: list[int], base: PreTrainedModel | None = None, **inputs: Any) -> Any:
        """The base's output for a row behind its prefix."""
        base = self.base if base is None else base
        embedding = base.get_input_embeddings()
        vectors = self.model.palette.decode(self.model.latents_from_codes(CODES, LENGTH))[row]
        if not self.through_hook:
            rows = torch.cat([vectors, embedding(torch.tensor(tokens))])
            return base(inputs_embeds=rows[None], use_cache=False, **inputs)

        def overwrite(module, args, output):
            return torch.cat([vectors.expand(len(output), -1, -1), output[:, LENGTH:]], 1)

        hook = embedding.register_forward_hook(overwrite)
        try:
            return base(input_ids=torch.tensor([[0] * LENGTH + tokens]), use_cache=False, **inputs)
        finally:
            hook.remove()

    def with_prefix(self, row: int, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([self.model.latent_ids(CODES, LENGTH)[row].tolist() + tokens])


@functools.cache
def case_of(family: str) -> Case:
    base = tiny_base(family)
    torch.manual_seed(1)
    width = base.get_input_embeddings().weight.shape[1]
    palette = PaletteVAE(width, latent_dim=8, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.fit_domain("math", torch.randn(30, 8) + 1)
    return Case(base, PaletteForCausalLM.from_base(copy.deepcopy(base), palette), family in THROUGH_HOOK)


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()
    return {"input_ids": ids, "attention_mask": mask}


def positions(model: PreTrainedModel, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The positions that `generate` passes; some families count differently without them."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def largest(*differences: torch.Tensor) -> float:
    found = max(float(difference.detach().abs().max()) for difference in differences)
    assert found == found, "not a number"
    return found


def close(difference: float) -> bool:
    return difference <= TOLERANCE


def count(found: list[list[int]], expected: list[list[int]]) -> int:
    """Tokens that differ."""
    return sum(a != b for rows in zip(found, expected, strict=True) for a, b in zip(*rows, strict=True))


def greedy(model: PreTrainedModel, rows: list[list[int]], **arguments: Any) -> list[list[int]]:
    """Rows without their pads, from `generate`."""
    batch = left_padded(rows)
    found = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, **arguments)
    return [ids[mask.argmax() :].tolist() for ids, mask in zip(found, batch["attention_mask"], strict=True)]


def greedy_by_hand(logits_of: Callable[[list[int]], torch.Tensor], tokens: list[int]) -> list[int]:
    """The same without a cache: every step computes the whole row."""
    tokens = list(tokens)
    for _ in range(NEW_TOKENS):
        tokens.append(int(logits_of(tokens)[0, -1].argmax()))
    return tokens


def batched_logits(model: PreTrainedModel, rows: list[list[int]]) -> list[torch.Tensor]:
    """Logits of the rows of a left-padded batch."""
    batch = left_padded(rows)
    logits = model(**batch, **positions(model, batch["attention_mask"])).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


def alone(base: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits of a row without pads and prefix."""
    return base(torch.tensor([tokens]), use_cache=False, **positions(base, torch.ones(1, len(tokens)).long())).logits


# What the base does without a palette.


@functools.cache
@torch.no_grad()
def base_left_padding(family: str) -> float:
    base = case_of(family).base
    found = batched_logits(base, PROMPTS)
    return largest(*(logits - alone(base, tokens)[0] for logits, tokens in zip(found, PROMPTS, strict=True)))


def batches(family: str) -> list[list[int]]:
    """Which rows go together: all, unless the base is wrong on left pads."""
    try:
        pads = close(base_left_padding(family))
    except Exception:
        pads = False
    rows = list(range(len(PROMPTS)))
    return [rows] if pads else [[row] for row in rows]


@torch.no_grad()
def base_generate(family: str) -> float:
    base = case_of(family).base
    found = [tokens for batch in batches(family) for tokens in greedy(base, [PROMPTS[row] for row in batch])]
    return count(found, [greedy_by_hand(functools.partial(alone, base), tokens) for tokens in PROMPTS])


@torch.no_grad()
def base_uncached(family: str) -> float:
    base = case_of(family).base
    together = [[PROMPTS[row] for row in batch] for batch in batches(family)]
    return sum(count(greedy(base, rows), greedy(base, rows, use_cache=False)) for rows in together)


def base_reload(family: str) -> float:
    return reload_of_base(copy.deepcopy(case_of(family).base))


def base_checkpointing(family: str) -> float:
    plain, base = (copy.deepcopy(case_of(family).base).train() for _ in range(2))
    ids = torch.tensor([PROMPTS[1]])
    checkpoint(base, ids)
    return apart(*(gradients_of(model(ids, labels=ids, use_cache=False).loss, model) for model in (base, plain)))


def base_resize(family: str) -> float:
    base = copy.deepcopy(case_of(family).base)
    base.resize_token_embeddings(base.config.get_text_config().vocab_size + 4)
    return reload_of_base(base)


@torch.no_grad()
def reload_of_base(base: PreTrainedModel) -> float:
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        return compare_reloaded(folder, base, torch.tensor([PROMPTS[1]]))


# What a palette does.


@torch.no_grad()
def forward(family: str) -> float:
    """Logits of rows without pads: the largest difference to the reference."""
    case = case_of(family)
    assert largest(case.by_hand(0, PROMPTS[0]).logits - case.by_hand(1, PROMPTS[0]).logits) > 100 * TOLERANCE
    return largest(
        *(
            case.model(case.with_prefix(row, tokens), use_cache=False).logits - case.by_hand(row, tokens).logits
            for row, tokens in enumerate(PROMPTS)
        )
    )


def behind_prefix(case: Case, row: int, tokens: list[int]) -> torch.Tensor:
    """Logits of the reference, with the positions that `generate` passes."""
    mask = torch.ones(1, LENGTH + len(tokens)).long()
    return case.by_hand(row, tokens, **positions(case.base, mask)).logits


@torch.no_grad()
def left_padding(family: str) -> float:
    """Logits of both rows in one left-padded batch: the largest difference to the reference."""
    case = case_of(family)
    rows = [case.with_prefix(row, tokens)[0].tolist() for row, tokens in enumerate(PROMPTS)]
    found = batched_logits(case.model, rows)
    return largest(*(found[row] - behind_prefix(case, row, tokens)[0] for row, tokens in enumerate(PROMPTS)))


@torch.no_grad()
def generate(family: str) -> float:
    """Cached greedy decoding: tokens unlike those of a loop without a cache; without a prefix, unlike the base's."""
    case = case_of(family)
    different = 0
    for batch in batches(family):
        rows = [PROMPTS[row] for row in batch]
        different += count(greedy(case.model, rows), greedy(case.base, rows))
        found = greedy(case.model, rows, latent=CODES[batch], num_prefix_tokens=LENGTH)
        expected = [greedy_by_hand(functools.partial(behind_prefix, case, row), PROMPTS[row]) for row in batch]
        different += count(found, expected)
    return different


@torch.no_grad()
def uncached(family: str) -> float:
    """`generate(use_cache=False)`: tokens that differ from `generate`'s."""
    case = case_of(family)
    different = 0
    for batch in batches(family):
        rows = [PROMPTS[row] for row in batch]
        prefix = {"latent": CODES[batch], "num_prefix_tokens": LENGTH}
        different += count(greedy(case.model, rows, **prefix), greedy(case.model, rows, use_cache=False, **prefix))
    return different


def reload(family: str) -> float:
    """
    Full and palette-only checkpoints through the auto class: no key missing or unexpected, every weight and buffer to
    the bit; the largest difference in the logits (a CPU's kernels may add up weights elsewhere in memory otherwise).
    """
    case = case_of(family)
    return reload_of_palette(case, case.base, case.model)


@torch.no_grad()
def reload_of_palette(case: Case, base: PreTrainedModel, model: PaletteForCausalLM) -> float:
    ids = case.with_prefix(1, PROMPTS[1])
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(Path(folder) / "base")
        model.config.base_model_name_or_path = str(Path(folder) / "base")
        differences = []
        for palette_only in (False, True):
            path = Path(folder) / f"palette_only_{palette_only}"
            model.save_pretrained(path, palette_only=palette_only)
            differences.append(compare_reloaded(path, model, ids))
    return max(differences)


def compare_reloaded(
    folder: Path | str,
    model: PreTrainedModel,
    ids: torch.Tensor,
    auto_class: Any = AutoModelForCausalLM,
    **inputs: torch.Tensor,
) -> float:
    loaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(model)
    for kind in ("missing_keys", "unexpected_keys"):
        assert not info[kind], f"{kind}: {sorted(info[kind])}"
    tensors, expected = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (loaded, model))
    assert tensors.keys() == expected.keys()
    changed = [name for name, tensor in expected.items() if not torch.equal(tensors[name], tensor)]
    assert not changed, f"tensors changed on disk: {changed}"
    return largest(loaded(ids, use_cache=False, **inputs).logits - model(ids, use_cache=False, **inputs).logits)


def gradients(family: str) -> float:
    """
    Loss and gradients of a row with a prefix: the largest difference to the reference's; of gradients, relative to
    the largest.
    """
    return compare_gradients(family, with_checkpoints=False)


def checkpointing(family: str) -> float:
    """The same with gradient checkpointing."""
    return compare_gradients(family, with_checkpoints=True)


def compare_gradients(family: str, with_checkpoints: bool) -> float:
    case = case_of(family)
    base, model = copy.deepcopy(case.base).train(), copy.deepcopy(case.model).train()
    ids = case.with_prefix(1, PROMPTS[1])
    labels = torch.tensor([[-100] * LENGTH + PROMPTS[1]])
    expected = case.by_hand(1, PROMPTS[1], base, labels=labels).loss
    if with_checkpoints:
        checkpoint(model, ids)
    loss = model(ids, labels=ids, use_cache=False).loss
    return max(largest(loss - expected), apart(gradients_of(loss, model), gradients_of(expected, base)))


def checkpoint(model: PreTrainedModel, ids: torch.Tensor, **inputs: torch.Tensor) -> None:
    """
    Raises:
        AssertionError: if gradient checkpointing computes nothing twice.
    """
    calls = Calls(model)
    gradients_of(model(ids, labels=ids, use_cache=False, **inputs).loss, model)
    once = calls.pop()
    model.gradient_checkpointing_enable()
    gradients_of(model(ids, labels=ids, use_cache=False, **inputs).loss, model)
    assert calls.pop() > once, "nothing is computed twice"


def gradients_of(loss: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, [parameter for _, parameter in trained], allow_unused=True, retain_graph=True)
    return {name: gradient for (name, _), gradient in zip(trained, found, strict=True) if gradient is not None}


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(largest(found[name] - expected[name]) for name in expected) / scale


class Calls:
    """Counts the calls of a model's innermost modules: checkpointing computes them twice."""

    def __init__(self, model: PreTrainedModel):
        self.number = 0
        for module in model.modules():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(self.count)

    def count(self, module, args):
        self.number += 1

    def pop(self) -> int:
        number, self.number = self.number, 0
        return number


def resize(family: str) -> float:
    """As `forward` and `reload`, after four tokens were added to the vocabulary and one of them to the prompt."""
    case = case_of(family)
    model, base = copy.deepcopy(case.model), copy.deepcopy(case.base)
    size = base.config.get_text_config().vocab_size + 4
    model.resize_token_embeddings(size)
    base.resize_token_embeddings(size)
    weights = model.state_dict()
    base.load_state_dict({name: weights[name] for name in base.state_dict()})
    tokens = [*PROMPTS[1], size - 1]
    with torch.no_grad():
        found = model(case.with_prefix(1, tokens), use_cache=False).logits
        difference = largest(found - case.by_hand(1, tokens, base).logits)
    return max(difference, reload_of_palette(case, base, model))


TOKENS = ("generate", "uncached")  # whose differences are counts of tokens
CHECKS = {
    "forward": (forward, None),
    "left padding": (left_padding, base_left_padding),
    "generate": (generate, base_generate),
    "uncached": (uncached, base_uncached),
    "reload": (reload, base_reload),
    "gradients": (gradients, None),
    "checkpointing": (checkpointing, base_checkpointing),
    "resize": (resize, base_resize),
}


@functools.cache
def outcome(family: str, check: str) -> Outcome:
    """
    Raises:
        AssertionError: if the palette fails a check that its base passes.
    """
    of_palette, of_base = CHECKS[check]
    try:
        difference = of_palette(family)
        failure = None if close(difference) else AssertionError(f"{family}, {check}: off by {difference:.2g}")
    except Exception as error:
        failure = error
    if failure is None:
        return Outcome(difference)
    if of_base is None:
        raise failure
    try:
        difference = of_base(family)
        what = f"{difference:.0f} new tokens differ" if check in TOKENS else f"off by {difference:.1g}"
        reason = None if close(difference) else what
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    if reason is None:
        raise AssertionError(f"{family}, {check}: the palette fails, its base does not") from failure
    return Outcome(None, reason)
