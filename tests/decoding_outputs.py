"""The decoding matrix: what comes back with the sequences, guidance, and watermarks."""

import copy

import torch
from decoding_settings import CODE, CODES, EVERYWHERE, IDS, LENGTH, MASK, NEW_TOKENS, ROW, WIDTH, both, check, equal
from transformers import (
    LogitsProcessorList,
    SynthIDTextWatermarkingConfig,
    WatermarkDetector,
    WatermarkingConfig,
)
from transformers.generation import logits_process as process


@check("Outputs", "`output_scores`, `output_logits`, `compute_transition_scores`", settings=EVERYWHERE)
def scores(setting):
    rows = 0
    for prefixed, reference in both(setting):
        processors = LogitsProcessorList([process.TemperatureLogitsWarper(0.5), process.TopKLogitsWarper(9)])
        ids, expected, raw = reference.decode(IDS, processors, seed=8)
        torch.manual_seed(8)
        output = setting.generate(
            prefixed,
            IDS,
            attention_mask=MASK,
            do_sample=True,
            temperature=0.5,
            top_k=9,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        rows += equal(output.sequences, ids)
        torch.testing.assert_close(torch.stack(output.scores), torch.stack(expected), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(raw), atol=1e-3, rtol=1e-4)
        log_probs = torch.stack(expected, 1).log_softmax(-1)
        by_hand = log_probs.gather(2, ids[:, WIDTH:, None])[..., 0]
        found = setting.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        torch.testing.assert_close(found, by_hand, atol=1e-3, rtol=1e-4)
    return rows


@check(
    "Outputs",
    "`output_hidden_states`",
    note="those of the prefill have the prefix's positions in them",
)
def hidden_states(setting):
    output = setting.model.generate(
        ROW,
        latent=CODE,
        num_prefix_tokens=LENGTH,
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    prefix = setting.prefixes(CODE)[0]
    embeds = setting.base.get_input_embeddings()(output.sequences[0, :-1])
    with torch.no_grad():
        expected = setting.base(inputs_embeds=torch.cat([prefix, embeds])[None], output_hidden_states=True)
    found = [torch.cat([step[layer] for step in output.hidden_states], 1) for layer in range(3)]
    for layer in range(3):
        torch.testing.assert_close(found[layer], expected.hidden_states[layer], atol=1e-4, rtol=1e-4)
    return 1


@check(
    "Guidance and watermarks",
    "`guidance_scale`{}",
    settings=EVERYWHERE,
    each=[("", {}), (" with `negative_prompt_ids`", {"negative": True}), (", `use_cache=False`", {"cached": False})],
    note="the unconditional branch never sees the prefix: it starts at the negative prompt, or at the last token of "
    "the prompt, so guidance strengthens the latent together with the prompt",
)
def guidance(setting, negative=False, cached=True):
    scale, rows = 1.7, 0
    prompts = torch.tensor([[0, 31, 32], [33, 34, 35]]) if negative else IDS[:, -1:]
    negative_mask = (prompts != 0).long()
    unconditional = setting.reference(False, prompts, negative_mask)
    unconditional.after = []
    for prefixed, reference in both(setting):

        def guided(ids, scores):
            conditional = scores.log_softmax(-1)
            free = torch.cat([prompts, ids[:, WIDTH:]], 1)
            baseline = unconditional.next_logits(free).log_softmax(-1)
            return scale * (conditional - baseline) + baseline

        expected = reference.decode(IDS, guided)[0]
        assert not torch.equal(expected, reference.decode(IDS)[0])
        arguments = {"negative_prompt_ids": prompts, "negative_prompt_attention_mask": negative_mask}
        found = setting.generate(
            prefixed,
            IDS,
            attention_mask=MASK,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            guidance_scale=scale,
            use_cache=cached,
            **(arguments if negative else {}),
        )
        rows += equal(found, expected)
    return rows


@check(
    "Guidance and watermarks",
    "`WatermarkingConfig`, {}, and its detector",
    settings=EVERYWHERE,
    each=[
        ("lefthash", {"seeding_scheme": "lefthash", "context_width": 1}),
        ("selfhash, context of 4", {"seeding_scheme": "selfhash", "context_width": 4}),
    ],
    note="hashes the sequence without the prefix, so that a detector can do the same",
)
def watermark(setting, **scheme):
    config = WatermarkingConfig(bias=8.0, **scheme)
    ids, mask, codes = IDS[:, -2:], MASK[:, -2:], CODES  # shorter than the context
    rows = 0
    for prefixed, reference in both(setting, ids, mask, codes):
        processor = process.WatermarkLogitsProcessor(vocab_size=43, device="cpu", **config.to_dict())
        expected = reference.decode(ids, LogitsProcessorList([processor]), max_new_tokens=24)[0]
        found = setting.generate(
            prefixed, ids, attention_mask=mask, do_sample=False, max_new_tokens=24, watermarking_config=config
        )
        rows += equal(found, expected)
    model_config = copy.deepcopy(setting.model.config)
    model_config.bos_token_id = 2  # the detector needs one
    detector = WatermarkDetector(model_config, device="cpu", watermarking_config=config)
    plain = setting.generate(True, ids, attention_mask=mask, do_sample=False, max_new_tokens=24)
    assert detector(found, return_dict=True).z_score.min() > detector(plain, return_dict=True).z_score.max()
    return rows


@check("Guidance and watermarks", "SynthID, and its g-values", settings=EVERYWHERE, note="as above")
def synth_id(setting):
    config = SynthIDTextWatermarkingConfig(ngram_len=3, keys=list(range(2, 14)), context_history_size=64)
    rows = 0
    for prefixed, reference in both(setting):
        processor = config.construct_processor(43, "cpu")
        temperature = process.TemperatureLogitsWarper(2.0)
        expected = reference.decode(IDS, LogitsProcessorList([temperature, processor]), max_new_tokens=24, seed=9)[0]
        torch.manual_seed(9)
        found = setting.generate(
            prefixed,
            IDS,
            attention_mask=MASK,
            do_sample=True,
            temperature=2.0,
            top_k=0,
            max_new_tokens=24,
            watermarking_config=config,
        )
        rows += equal(found, expected)
        torch.manual_seed(9)
        plain = setting.generate(
            prefixed, IDS, attention_mask=MASK, do_sample=True, temperature=2.0, top_k=0, max_new_tokens=24
        )
        g_values = config.construct_processor(43, "cpu").compute_g_values
        means = [g_values(ids[:, WIDTH:]).float().mean() for ids in (found, plain)]
        assert means[0] > means[1] + 0.05
    return rows
