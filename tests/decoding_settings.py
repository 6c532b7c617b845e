"""Models, prompts and the two comparisons of the decoding matrix."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from decoding_reference import Reference
from trainer_testing import tiny_base, tiny_palette, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 8, 9, 10]])
MASK = (IDS != 0).long()
CODES = [5, (1 << 20) + 6]  # the prior's and a domain's
LENGTH = 3  # L
NEW_TOKENS = 8
WIDTH = IDS.shape[1]
ROW, ROW_MASK, CODE = IDS[1:], MASK[1:], CODES[1:]  # for what takes one row
EVERYWHERE = ("Qwen3", "Qwen3, after_bos")
EVERY_MODEL = (*EVERYWHERE, "Qwen3, bf16", "Gemma 3, window 4", "Falcon-H1")
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.5}  # greedy texts that vary instead of repeating a word


@dataclass
class Setting:
    """A base, its palette, and the reference behind the prefixes of `CODES`."""

    base: Any
    model: Any

    def prefixes(self, codes=CODES, length=LENGTH):
        return self.model.palette.decode(self.model.latents_from_codes(torch.tensor(codes), length)).to(
            self.base.dtype
        )

    def reference(self, prefixed: bool, ids=IDS, mask=MASK, codes=CODES, length=LENGTH):
        """The reference for prompts `ids`; without a prefix it is held against the base itself."""
        starts = mask.argmax(1)
        bos = self.base.config.bos_token_id
        is_after = self.model.config.prefix_position == "after_bos"
        after = [int(is_after and ids[row, start] == bos) for row, start in enumerate(starts)]
        reference = Reference(self.base, self.prefixes(codes, length) if prefixed else None, after)
        reference.prompts(ids, mask)
        return reference

    def generate(self, prefixed: bool, *args, codes=CODES, length=LENGTH, **arguments):
        """The palette's `generate`; without a prefix the base's, with which the palette's must agree."""
        if prefixed:
            return self.model.generate(*args, latent=codes, num_prefix_tokens=length, **arguments)
        state, copies = torch.get_rng_state(), copy.deepcopy(arguments)
        found = self.base.generate(*args, **arguments)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        of_palette = self.model.generate(*args, **copies)
        sequences = [out if isinstance(out, torch.Tensor) else out.sequences for out in (found, of_palette)]
        assert torch.equal(*sequences), "without a prefix the palette model differs from its base"
        assert torch.equal(torch.get_rng_state(), after)
        return found


def _palette(width, seed=1):
    torch.manual_seed(seed)
    palette = PaletteVAE(width, latent_dim=4, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.embedding_std.fill_(0.2)
    palette.fit_domain("math", torch.randn(20, 4) + 2)
    return palette


def _from_config(config):
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, 3
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    base.eval().generation_config.eos_token_id = None
    return Setting(base, PaletteForCausalLM.from_base(base, _palette(config.hidden_size)))


def _qwen3(dtype=torch.float32, prefix_position="start", **config):
    base = tiny_base(**{**LIVELY, **config}).to(dtype)
    base.generation_config.eos_token_id = None
    model = PaletteForCausalLM.from_base(
        base, palette=tiny_palette(), tokenizer=tiny_tokenizer(), prefix_position=prefix_position
    )
    return Setting(base, model)


SIZES = {
    "vocab_size": 43,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
SETTINGS: dict[str, Callable[[], Setting]] = {
    "Qwen3": _qwen3,
    "Qwen3, after_bos": lambda: _qwen3(prefix_position="after_bos", bos_token_id=3),
    "Qwen3, bf16": lambda: _qwen3(torch.bfloat16),
    "Gemma 3, window 4": lambda: _from_config(
        Gemma3TextConfig(sliding_window=4, layer_types=["sliding_attention", "full_attention"], **SIZES)
    ),
    "Falcon-H1": lambda: _from_config(
        FalconH1Config(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4, **SIZES)
    ),
}


@functools.cache
def setting(name: str) -> Setting:
    return SETTINGS[name]()


@dataclass
class Case:
    """
    A way to decode, and what it is compared with.

    Args:
        group, name (`str`): The row of the table.
        arguments (`dict`, or function of a [`Run`]): Arguments of `generate`.
        processors (function of a [`Run`], *optional*): The logits processors of the reference, built from the
            arguments for the *ordinary* ids.
        reference (`dict` or function of a [`Run`]): Further arguments of the reference's loop.
        seed (`int`, *optional*): Samples, from this seed.
        bites (`bool`): Whether the outcome has to differ from that of the reference without processors.
        check (function of a [`Setting`], *optional*): The whole comparison, where it is none of the above; returns
            the number of rows compared.
        settings (tuple of `str`): Where it is run.
        note (`str`): What a user has to know.
    """

    group: str
    name: str
    arguments: Any = None
    processors: Callable | None = None
    reference: Any = None
    seed: int | None = None
    bites: bool = True
    check: Callable[[Setting], int] | None = None
    settings: tuple[str, ...] = ("Qwen3",)
    note: str = ""


@dataclass
class Run:
    """What a case may build its arguments from."""

    setting: Setting
    prefixed: bool
    ids: torch.Tensor
    greedy: torch.Tensor  # what plain greedy decoding gives
    seed: int | None

    def token(self, row: int, step: int) -> int:
        """The token that plain greedy decoding generates at a step."""
        return int(self.greedy[row, self.ids.shape[1] + step])


def compare(case: Case, where: Setting) -> int:
    """Number of rows on which `generate` equals the reference, with a prefix and without."""
    if case.check is not None:
        return case.check(where)
    rows = 0
    for prefixed in (False, True):
        reference = where.reference(prefixed)
        greedy, _, _ = reference.decode(IDS, max_new_tokens=NEW_TOKENS)
        run = Run(where, prefixed, IDS, greedy, case.seed)
        arguments = case.arguments(run) if callable(case.arguments) else dict(case.arguments or {})
        further = case.reference(run) if callable(case.reference) else dict(case.reference or {})
        processors = LogitsProcessorList(case.processors(run) if case.processors else [])
        expected, _, _ = reference.decode(IDS, processors, seed=case.seed, **{"max_new_tokens": NEW_TOKENS, **further})
        plain = greedy if case.seed is None else reference.decode(IDS, seed=case.seed, max_new_tokens=NEW_TOKENS)[0]
        assert not case.bites or expected.tolist() != plain.tolist(), "the option has no effect here"
        lengths = {} if {"max_length", "max_new_tokens"} & set(arguments) else {"max_new_tokens": NEW_TOKENS}
        if case.seed is not None:
            torch.manual_seed(case.seed)
        arguments = {"attention_mask": MASK, "do_sample": case.seed is not None, **lengths, **arguments}
        found = where.generate(prefixed, IDS, **arguments)
        assert found.tolist() == expected.tolist(), f"prefixed={prefixed}"
        rows += len(found)
    return rows


CHECKS: list[Case] = []


def check(group, name, settings=("Qwen3",), note="", **parametrisation):
    """Registers a check; with `each=[...]`, once for each pair of a label and arguments."""

    def register(function):
        for label, arguments in parametrisation.get("each", [(None, {})]):
            CHECKS.append(
                Case(
                    group,
                    name if label is None else name.format(label),
                    check=lambda setting, arguments=arguments: function(setting, **arguments),
                    settings=settings,
                    note=note,
                )
            )
        return function

    return register


def repetition_penalty_behind(penalty, pads):
    """The processor that `repetition_penalty` makes for rows with so many pads (older transformers penalise those)."""
    try:
        return RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=torch.as_tensor(pads))
    except ValueError:
        return RepetitionPenaltyLogitsProcessor(penalty)


def both(setting, ids=IDS, mask=MASK, codes=CODES):
    """Without a prefix and with one: the flag and the reference."""
    return [(prefixed, setting.reference(prefixed, ids, mask, codes)) for prefixed in (False, True)]


def equal(found, expected):
    found, expected = ([list(map(int, row)) for row in rows] for rows in (found, expected))
    assert found == expected, f"{found} is not {expected}"
    return len(found)


def same_error(setting, *arguments, prefix=None, **keywords):
    """Raises with a prefix what the base raises."""
    messages = []
    for model, palette in ((setting.base, {}), (setting.model, prefix or {"latent": CODES})):
        try:
            model.generate(*arguments, **copy.copy(keywords), **palette)
        except Exception as error:
            messages.append((type(error), str(error).replace("Palette", "")))
        else:
            messages.append(None)
    assert messages[0] is not None
    assert messages[0] == messages[1]
    return messages[0]


def refused(message, call):
    try:
        call()
    except ValueError as error:
        assert message in str(error), str(error)
        return f"refused: {message}"
    raise AssertionError(f"not refused: {message}")


def as_stock(setting, *arguments, contains, **keywords):
    kind, message = same_error(setting, *arguments, **keywords)
    assert contains in message, message
    return f"as on the base: {kind.__name__}, {contains}"
