"""One latent as a standard PEFT prompt-tuning adapter of the base."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .latent_prefix import Domain, resolve_prefix
from .named_strategies import one_sequence
from .stock_base import all_or_nothing, base_tensors, logits_agree, unused_folder
from .unverified_bases import evaluating

LATENT_FILE = "latent.json"


def export_prompt_tuning(
    model: Any,
    folder: str | Path,
    latent: Any = None,
    domain: Domain = None,
    num_prefix_tokens: int | None = None,
    latent_tile: bool = False,
    latent_seed: int | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
) -> dict[str, Any]:
    r"""
    Write one latent as a prompt-tuning adapter: `AutoPeftModelForCausalLM.from_pretrained(folder)` answers one prompt
    as `generate(latent=...)` does.

    The base is loaded by its name and the adapter on it, through PEFT, and their logits and greedy tokens are compared
    with this model's before the folder appears. Two limits are PEFT's own (0.21.2, measured):

    - It puts virtual tokens in front of left pads and drops `position_ids`, so that a padded row is not answered as
      the same prompt alone. Give it one prompt at a time, or prompts of one length.
    - With transformers 5.24, which calls its cache `cache`, PEFT's `generate` inserts the virtual tokens again at
      every cached step. Where the export sees that, it warns; `generate(use_cache=False)` is right.

    Args:
        model ([`PaletteForCausalLM`]): The palette model.
        folder (`str` or `Path`): Where to write; must not exist, or be empty.
        latent, domain, num_prefix_tokens, latent_tile, latent_seed: As `generate` takes them for one sequence; a float
            tensor may also have shape `(L, Z)`, which sets L where it is more than 1.
        base_model_name_or_path (`str`, *optional*): Folder or Hub id of a stock checkpoint with this model's base
            weights; the one that the palette was made on by default. Written into the adapter.
        base_model_revision (`str`, *optional*): Its revision.

    Returns:
        `dict`: What `latent.json` holds: code, domain, L, the palette's fingerprint, and warnings.

    Raises:
        ImportError: without PEFT.
        ValueError: for arguments that `generate` refuses, a folder in use, `prefix_position="after_bos"`, a base
            without a name, and wherever PEFT on that base does not give this model's logits and tokens.
    """
    try:
        from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ImportError("`export_prompt_tuning` writes through PEFT: `pip install peft`.") from error
    folder = unused_folder(folder)
    model._require_palette()
    model._check_frozen_layout()
    model._sync_domains()
    model._warn_untrained()
    if model.config.prefix_position != "start":
        raise ValueError(
            f"This palette's `prefix_position` is {model.config.prefix_position!r}, but PEFT puts virtual tokens in "
            "front of everything. Use `export_strategy_tokens`, whose tokens stand where they are written."
        )
    if base_model_name_or_path is None:
        base_model_name_or_path = model.config.base_model_name_or_path
        base_model_revision = base_model_revision or model.config.base_model_revision
    if base_model_name_or_path is None:
        raise ValueError(
            "An adapter names its base, but this one was built in memory. Give `base_model_name_or_path`, the folder "
            "or Hub id of a stock checkpoint with its weights."
        )
    base_tensors(model)  # refuses what a stock base does not hold
    prefix = resolve_prefix(
        model.config, 1, 1, one_sequence(latent), domain, num_prefix_tokens, latent_tile, latent_seed
    )
    length = prefix.num_prefix_tokens
    with torch.no_grad():
        rows = model._latent_embedding.prefix_rows(prefix)[0]

    base = AutoModelForCausalLM.from_pretrained(
        base_model_name_or_path,
        revision=base_model_revision or "main",
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        trust_remote_code=False,
    )
    base = base.to(model.device).eval()
    adapted = get_peft_model(
        base,
        PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=length,
            token_dim=rows.shape[-1],  # PEFT guesses the layers' width, which an embedding may be narrower than (OPT)
            revision=base_model_revision,
            inference_mode=True,
        ),
    )
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.copy_(rows)
    code = int(prefix.codes[0])
    by_source = {entry["source"]: name for name, entry in model.config.domains.items()}
    record = {
        "code": code if code >= 0 else None,
        "domain": by_source.get(code // model.config.num_codes) if code >= 0 else None,
        "num_prefix_tokens": length,
        "latent_tile": prefix.latent_tile,
        "latent_fingerprint": model.latent_fingerprint(),
    }
    with all_or_nothing(folder) as scratch:
        adapted.save_pretrained(scratch)
        with torch.no_grad(), evaluating(model):
            adapted = PeftModel.from_pretrained(adapted.get_base_model(), scratch).eval()
            record["warnings"] = _verify(model, adapted, prefix, rows)
        (scratch / LATENT_FILE).write_text(json.dumps(record, indent=2) + "\n")
    for warning in record["warnings"]:
        warnings.warn(warning, stacklevel=3)
    return record


def _verify(model: Any, adapted: Any, prefix: Any, rows: torch.Tensor) -> list[str]:
    """
    Compare PEFT on the named base with the palette model.

    Returns:
        `list[str]`: Warnings.

    Raises:
        ValueError: where PEFT on the named base does not give the palette model's rows, logits and greedy tokens.
    """
    base = adapted.get_base_model()
    named = f"the base {base.name_or_path!r}"
    generator = torch.Generator().manual_seed(0)
    highest = min(len(model.tokenizer or ()), base.config.get_text_config().vocab_size) or base.config.vocab_size
    probe = torch.randint(highest, (4, 16), generator=generator).to(model.device)
    plain, stock = (one(input_ids=probe, use_cache=False).logits.float() for one in (model, base))
    if not logits_agree(stock, plain, model.dtype):
        raise ValueError(
            f"This model's base weights are not those of {named}: its logits without a prefix differ. Give "
            "`base_model_name_or_path`, a stock checkpoint with this model's weights, or use "
            "`export_strategy_tokens`, which writes one."
        )
    found = adapted.get_prompt(batch_size=1)[0].to(rows)
    if not torch.equal(found, rows):
        raise ValueError(f"PEFT does not read the rows back from the adapter: {tuple(found.shape)}.")
    with model._lend_ids(prefix, probe.device) as latent_ids:
        ids = torch.cat([latent_ids.expand(len(probe), -1), probe], 1)
        expected = model(input_ids=ids, use_cache=False).logits.float()
    logits = adapted(input_ids=probe, attention_mask=torch.ones_like(probe)).logits.float()
    if not logits_agree(logits, expected, model.dtype):
        raise ValueError(
            f"PEFT's virtual tokens on {type(base).__name__} do not give the palette model's logits (off by "
            f"{float((logits - expected).abs().max()):.2g}): this family reads `inputs_embeds`, which PEFT uses, in "
            "another way than token ids. Use `export_strategy_tokens`."
        )
    # one row, three tokens: whether PEFT's decoding loop shows the base what its forward pass does
    prompt, reads = probe[:1], dict[bool, bool]()
    greedy = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with model._lend_ids(prefix, probe.device) as latent_ids:
        ids = torch.cat([latent_ids, prompt], 1)
        ours = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
            output_logits=True,
            return_dict_in_generate=True,
            **greedy,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PEFT drops position ids
        for use_cache in (False, True):
            theirs = adapted.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                use_cache=use_cache,
                output_logits=True,
                return_dict_in_generate=True,
                **greedy,
            )
            # up to the first token of another choice, which half precision makes of a near tie
            agree = (theirs.sequences[0, prompt.shape[1] :] == ours.sequences[0, ids.shape[1] :]).tolist()
            steps = agree.index(False) + 1 if False in agree else len(agree)
            pairs = list(zip(theirs.logits, ours.logits, strict=True))[:steps]
            reads[use_cache] = all(logits_agree(found, expected, model.dtype) for found, expected in pairs)
    if not reads[False]:
        raise ValueError(
            f"PEFT's `generate` on {type(base).__name__} does not decode what the palette model does, though its "
            "logits are right. Use `export_strategy_tokens`."
        )
    if not reads[True]:
        return [
            "With these versions of PEFT and transformers, PEFT's `generate` inserts the virtual tokens again at "
            "every cached step. Pass `use_cache=False` to it; its forward pass is right."
        ]
    return []
