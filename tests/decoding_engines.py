"""The decoding matrix: continuous batching, loops of a user's own, and modes that moved out of transformers."""

import tempfile
from pathlib import Path

import torch
from decoding_settings import (
    CODES,
    EVERYWHERE,
    IDS,
    LENGTH,
    MASK,
    as_stock,
    both,
    check,
    equal,
    refused,
)
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process as process

PROMPTS = [[5, 6, 7], [3, 4, 8, 9, 10], [11, 12, 13, 14]]
PROMPT_CODES = [*CODES, None]  # the last goes without a prefix
BY_HAND = "latent ids stand in the prompts, by `insert_latent_ids`; palette arguments are refused"


def with_latent_ids(setting):
    prompts = []
    for prompt, code in zip(PROMPTS, PROMPT_CODES, strict=True):
        if code is not None:
            prefix = setting.model.latent_ids(torch.tensor([code]), LENGTH)[0].tolist()
            prompt = setting.model.insert_latent_ids(prompt, prefix)
        prompts.append(prompt)
    return prompts


def completions(setting, **arguments):
    expected = []
    for prompt, code in zip(PROMPTS, PROMPT_CODES, strict=True):
        ids = torch.tensor([prompt])
        reference = setting.reference(code is not None, ids, torch.ones_like(ids), [code])
        expected.append(reference.decode(ids, **{"max_new_tokens": 6, **arguments})[0][0, len(prompt) :].tolist())
    return expected


def batching(**settings):
    page = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"
    return {
        "generation_config": GenerationConfig(
            max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0, **settings
        ),
        # without these, the cache takes most of the machine's memory
        "continuous_batching_config": ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, **{page: 32}),
    }


@check(
    "Continuous batching",
    "`generate_batch`, prompts of different lengths and codes",
    settings=EVERYWHERE,
    note=BY_HAND,
)
def generate_batch(setting):
    output = setting.model.generate_batch(with_latent_ids(setting), **batching())
    return equal(sorted(one.generated_tokens for one in output.values()), sorted(completions(setting)))


@check(
    "Continuous batching",
    "`generate_batch`, sampling with `top_k=1`, `temperature` and `repetition_penalty`",
    note="the penalty is dropped with a warning, as on the base",
)
def generate_batch_with_processors(setting):
    arguments = batching(repetition_penalty=3.0, temperature=0.5, top_k=1)
    arguments["generation_config"].do_sample = True
    output = setting.model.generate_batch(with_latent_ids(setting), **arguments)
    return equal(sorted(one.generated_tokens for one in output.values()), sorted(completions(setting)))


@check(
    "Continuous batching",
    "a persistent manager: requests added while it runs",
    settings=EVERYWHERE,
    note=BY_HAND,
)
def manager(setting):
    found = {}
    with setting.model.continuous_batching_context_manager(**batching()) as running:
        for name, prompt in enumerate(with_latent_ids(setting)):
            running.add_request(prompt, request_id=str(name), max_new_tokens=6)
        for _ in PROMPTS:
            output = running.get_result(timeout=60)
            found[output.request_id] = output.generated_tokens
    return equal([found[str(name)] for name in range(len(PROMPTS))], completions(setting))


@check("Continuous batching", "palette arguments to `generate_batch`")
def palette_arguments(setting):
    return refused(
        "`generate_batch` does not take ['domain']", lambda: setting.model.generate_batch(PROMPTS, domain="math")
    )


@check(
    "Loops of your own",
    "`custom_generate`, a function",
    settings=EVERYWHERE,
    note="gets ids with the prefix in them",
)
def custom_function(setting):
    def of_rank(model, input_ids, logits_processor, stopping_criteria, generation_config, rank, **model_kwargs):
        mask = model_kwargs["attention_mask"]
        while not stopping_criteria(input_ids, None).all():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            output = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
            scores = logits_processor(input_ids, output.logits[:, -1])
            input_ids = torch.cat([input_ids, scores.topk(rank).indices[:, -1:]], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return input_ids

    rows = 0
    for prefixed, reference in both(setting):
        processors = LogitsProcessorList([process.NoRepeatNGramLogitsProcessor(1)])

        def second(ids, scores, processors=processors):
            scores = processors(ids, scores)
            return scores.scatter(1, scores.argmax(-1, keepdim=True), float("-inf"))

        expected = reference.decode(IDS, second, max_new_tokens=5)[0]
        found = setting.generate(
            prefixed,
            IDS,
            attention_mask=MASK,
            custom_generate=of_rank,
            rank=2,
            no_repeat_ngram_size=1,
            max_new_tokens=5,
            use_cache=False,
            do_sample=False,
        )
        rows += equal(found, expected)
    return rows


FOLDER = """
import torch


def generate(model, inputs=None, input_ids=None, attention_mask=None, rank=1, max_new_tokens=1, **kwargs):
    input_ids = inputs if input_ids is None else input_ids
    for _ in range(max_new_tokens):
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        input_ids = torch.cat([input_ids, output.logits[:, -1].topk(rank).indices[:, -1:]], dim=1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(attention_mask), 1)], dim=1)
    return input_ids
"""


@check(
    "Loops of your own",
    "`custom_generate`, a repo, with `trust_remote_code=True`",
    settings=EVERYWHERE,
    note="gets ids with the prefix in them; without `trust_remote_code`, transformers' refusal",
)
def custom_repo(setting):
    rows = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "custom_generate").mkdir()
        (Path(folder) / "custom_generate" / "generate.py").write_text(FOLDER)
        as_stock(setting, IDS, custom_generate=folder, trust_remote_code=False, contains="trust_remote_code=True")
        for prefixed, reference in both(setting):

            def second(ids, scores):
                return scores.scatter(1, scores.argmax(-1, keepdim=True), float("-inf"))

            found = setting.generate(
                prefixed,
                IDS,
                attention_mask=MASK,
                custom_generate=folder,
                trust_remote_code=True,
                rank=2,
                max_new_tokens=5,
            )
            rows += equal(found, reference.decode(IDS, second, max_new_tokens=5)[0])
    return rows


@check(
    "Moved out of transformers",
    "{}",
    each=[
        ("contrastive search", {"penalty_alpha": 0.6, "top_k": 4}),
        ("DoLa", {"dola_layers": "high"}),
        ("group (diverse) beam search", {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
        ("constrained beam search", {"num_beams": 4, "force_words_ids": [[5]]}),
    ],
    note="in a `custom_generate` repo, which `trust_remote_code=True` loads from the Hub; not run by the tests",
)
def moved_out(setting, **arguments):
    return as_stock(
        setting,
        IDS,
        attention_mask=MASK,
        do_sample=False,
        max_new_tokens=4,
        contains="requires `trust_remote_code=True`",
        **arguments,
    )


@check("Moved out of transformers", "`low_memory=True` of beam search")
def low_memory(setting):
    return as_stock(
        setting, IDS, attention_mask=MASK, num_beams=2, low_memory=True, max_new_tokens=4, contains="is not supported"
    )
