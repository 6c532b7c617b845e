"""Whether an exported checkpoint, loaded as a stock one, answers as the palette model does."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .named_strategies import Strategy
from .stock_base import logits_agree

# Nats that the strategies' logits must be below the largest one.
SMALLEST_MARGIN = 1000.0


def probe_ids(model: Any, ordinary: int) -> torch.Tensor:
    """Four rows of ordinary tokens, for comparing logits."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(ordinary, (4, 16), generator=generator).to(model.device)


def check_export(model: Any, folder: Path, strategies: list[Strategy], ordinary: int, kind: str) -> float:
    """
    Load what was written and compare it with the palette model.

    Returns:
        `float`: How far the strategies' logits were below the largest one, at the least; in nats.

    Raises:
        ValueError: where the rows, the logits, the tokens or the margin are not what they must be.
    """
    base_name = type(model).base_class.__name__
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
        trust_remote_code=False,
    )
    loaded = loaded.to(model.device).eval()
    wrong = {name: info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(name)}
    if wrong or type(loaded) is not type(model).base_class:
        raise ValueError(f"{base_name} does not load with an untied head and a larger vocabulary: {wrong}.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    width = strategies[0].rows.shape[-1]
    precision = torch.finfo(model.dtype).eps
    probe = probe_ids(model, ordinary)
    silent = [one for strategy in strategies for one in strategy.ids]
    margin = float("inf")
    for strategy in [None, *strategies]:
        shown, latent = probe, probe
        if strategy is not None:
            text = "".join(tokenizer.convert_ids_to_tokens(strategy.token_ids))
            if tokenizer(text, add_special_tokens=False)["input_ids"] != strategy.token_ids:
                raise ValueError(f"The tokenizer does not read the tokens of {strategy.name!r} back from their text.")
            expected = strategy.rows.to(model.dtype).float()
            found = loaded.get_input_embeddings()(torch.tensor(strategy.ids, device=model.device))[:, :width].float()
            if not torch.allclose(found, expected.to(found), rtol=4 * precision, atol=4 * precision):
                raise ValueError(
                    f"{base_name} does not give back the rows of {strategy.name!r} written to its embedding: off by "
                    f"{float((found - expected.to(found)).abs().max()):.2g}."
                )
            shown = torch.cat([torch.tensor([strategy.token_ids] * len(probe)).to(probe), probe], 1)
        if strategy is None:
            reference = model(input_ids=probe, use_cache=False).logits
        else:
            with model._lend_ids(strategy.prefix, probe.device) as latent_ids:
                latent = torch.cat([latent_ids.expand(len(probe), -1), probe], 1)
                reference = model(input_ids=latent, use_cache=False).logits
        try:
            logits = loaded(input_ids=shown, use_cache=False).logits.float()
        except RuntimeError as error:  # a layer whose width is `hidden_size` by name alone (BitNet, Helium)
            raise ValueError(
                f"{base_name} does not run with `guard`={kind!r}: {error}. Use `guard='suppress_tokens'`, which "
                "exports for transformers alone."
            ) from error
        reference = reference[..., :ordinary].float()
        if not logits_agree(logits[..., :ordinary], reference, model.dtype):
            difference = float((logits[..., :ordinary] - reference).abs().max())
            behind = "without a strategy" if strategy is None else f"behind {strategy.name!r}"
            way_out = "Serve the palette checkpoint itself."
            if kind == "channel":
                way_out = f"`guard='suppress_tokens'` leaves its layers as they are. {way_out}"
            raise ValueError(
                f"A stock {base_name} with `guard`={kind!r} does not give the palette model's logits {behind}: off by "
                f"{difference:.2g}. {way_out}"
            )
        margin = min(margin, float((logits[..., :ordinary].amax(-1) - logits[..., silent].amax(-1)).min()))
    margin = min(margin, torch.finfo(model.dtype).max)  # JSON has no infinity, which float16 may have reached
    if kind != "suppress_tokens" and margin < SMALLEST_MARGIN:
        raise ValueError(
            f"`guard`={kind!r}: the strategies' logits are only {margin:.3g} below the largest one for {base_name}, "
            "which does not rule them out. Use `guard='suppress_tokens'`, which exports for transformers alone."
        )
    return margin
