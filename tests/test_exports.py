"""Strategy tokens and prompt-tuning adapters on real consumers: stock transformers without this package, and PEFT."""

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import family_checks
import pytest
import torch
from chat_testing import chat_palette_model
from export_testing import (
    FAMILIES,
    GUARDS,
    NEW_TOKENS,
    chosen_strategies,
    export_base,
    export_model,
    spliced_greedy,
    strategy_latents,
    word_prompts,
)
from family_checks import CODES, case_of
from test_remote_code import run_without_the_package
from text_families import is_known
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from trainer_testing import WORDS, tiny_base, tiny_palette, tiny_palette_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from reasoning_palette.modeling_palette import PaletteForCausalLM

LENGTH = 4
# `text` is what a user types: the strategy's tokens, then words.
STOCK = """
import importlib.util, json, sys
assert importlib.util.find_spec("reasoning_palette") is None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompts, new_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
strategies = json.load(open(f"{folder}/strategies.json"))["strategies"]
found = []
for name, words in prompts:
    text = (strategies[name]["text"] if name else "") + " ".join(words)
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.shape[1] == len(words) + (len(strategies[name]["token_ids"]) if name else 0), text
    output = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    found.append(output[0, ids.shape[1]:].tolist())
print(json.dumps({"tokens": found, "class": type(model).__name__, "type": model.config.model_type}))
"""


def export(model, folder, strategies=None, **arguments):
    """An export of which nothing is to be warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        arguments = {"num_prefix_tokens": LENGTH, **arguments}
        return model.export_strategy_tokens(folder, strategies or chosen_strategies(), **arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_decodes_what_the_palette_does(family, tmp_path):
    base = export_base(family)
    model = export_model(base)
    record = export(model, tmp_path / "export")
    assert record["guard"]["kind"] == GUARDS.get(family, "channel")
    assert record["guard"]["smallest_margin"] > 1000

    prompts, names = word_prompts(), [None, *chosen_strategies()]
    latents = strategy_latents(model, LENGTH)
    asked = [names[index // 10 % len(names)] for index in range(len(prompts))]
    rows = [None if name is None else model.palette.decode(latents[name]) for name in asked]
    taken = [one for entry in record["strategies"].values() for one in entry["token_ids"]]
    expected = spliced_greedy(base, rows, prompts, taken)
    arguments = [(name, [WORDS[token - 3] for token in prompt]) for name, prompt in zip(asked, prompts, strict=True)]
    done = run_without_the_package(STOCK, tmp_path, tmp_path / "export", json.dumps(arguments), NEW_TOKENS)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == expected
    assert (found["class"], found["type"]) == (type(base).__name__, base.config.model_type)
    assert not list((tmp_path / "export").glob("*.py"))
    assert "auto_map" not in (tmp_path / "export" / "config.json").read_text()
    # the strategies matter: the same prompts without them are answered otherwise
    assert expected != spliced_greedy(base, [None] * len(prompts), prompts, taken)


def test_ordinary_log_probabilities_stay_and_strategies_have_none(tmp_path):
    base = export_base("qwen3-full")
    record = export(export_model(base), tmp_path / "export")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    ids = torch.randint(3, 43, (8, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logprobs, reference = stock(ids).logits.log_softmax(-1), base(ids).logits.log_softmax(-1)
    torch.testing.assert_close(logprobs[..., :43], reference, atol=1e-5, rtol=0)
    assert float(logprobs[..., 43:].max()) < -1000
    assert set(range(43, 43 + 15)) == {one for entry in record["strategies"].values() for one in entry["token_ids"]}


@pytest.mark.parametrize("family", ["qwen3-tied", "gpt2", "phi"])
def test_strategies_are_never_sampled_even_without_the_generation_config(family, tmp_path):
    record = export(export_model(export_base(family)), tmp_path / "export")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert stock.generation_config.suppress_tokens
    stock.generation_config.suppress_tokens = None
    tokens = [one for entry in record["strategies"].values() for one in entry["token_ids"]]
    torch.manual_seed(0)
    prompt = torch.tensor([record["strategies"]["code"]["token_ids"] + [5]])
    with torch.no_grad():
        found = stock.generate(prompt, do_sample=True, temperature=10.0, top_k=0, max_new_tokens=60,
                               num_return_sequences=50)[:, prompt.shape[1] :]  # fmt: skip
        logits = stock(torch.cat([prompt.expand(50, -1), found], 1)).logits
    assert not torch.isin(found, torch.tensor(tokens)).any()
    assert len(found.unique()) > 35  # nearly every ordinary token was
    assert float((logits[..., :43].amin(-1) - logits[..., tokens].amax(-1)).min()) > 1000


def test_suppressed_tokens_are_merged_and_hold_under_beams(tmp_path):
    model = tiny_palette_model()
    model.generation_config.suppress_tokens = [7, 8]
    with pytest.warns(UserWarning, match="Only transformers keeps these tokens from being sampled"):
        record = model.export_strategy_tokens(
            tmp_path / "export", num_strategies=2, domain="math", latent_seed=0, guard="suppress_tokens"
        )
    assert list(record["strategies"]) == ["math-0", "math-1"]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert stock.generation_config.suppress_tokens == [7, 8, *range(43, 43 + 16)]
    assert stock.config.hidden_size == model.config.hidden_size  # this guard leaves the layers alone
    ids = torch.tensor([[*record["strategies"]["math-1"]["token_ids"], 5, 6]])
    for arguments in ({"num_beams": 4}, {"do_sample": True, "temperature": 50.0, "top_k": 0}, {}):
        found = stock.generate(ids, max_new_tokens=40, **arguments)[0, ids.shape[1] :]
        assert not torch.isin(found, torch.tensor(stock.generation_config.suppress_tokens)).any()
    # an engine that ignores the generation config never takes them greedily: the mean logit is not the largest
    with torch.no_grad():
        logits = stock(torch.randint(3, 43, (16, 20))).logits
    torch.testing.assert_close(logits[..., 43], logits[..., :43].mean(-1), atol=1e-4, rtol=0)


def test_rows_of_the_vocabulary(tmp_path):
    """Free rows are used, rows are added where there are none, and the other rows stay."""
    for size, expected in ((128, 128), (48, 64), (43, 59)):
        base = tiny_base(vocab_size=size)
        model = PaletteForCausalLM.from_base(base, tiny_palette(), tokenizer=tiny_tokenizer())
        model.export_strategy_tokens(tmp_path / str(size), num_strategies=2, latent_seed=0, guard="suppress_tokens")
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / str(size))
        assert stock.config.vocab_size == expected
        rows, head = stock.get_input_embeddings().weight, stock.get_output_embeddings().weight
        original = base.get_input_embeddings().weight
        used = torch.arange(43, 59)
        kept = torch.tensor([one for one in range(size) if one not in used])
        assert torch.equal(rows[kept], original[kept])
        assert torch.equal(head[kept], original[kept])  # tied before
        assert len(rows) == len(head) == expected
        codes = model.draw_codes(2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(rows[used].reshape(2, 8, -1), model.palette.decode(model.latents_from_codes(codes, 8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, tmp_path):
    """The export rounds as the base does: no further from full precision than 1.5 times the base's own distance."""
    base = export_base("llama").to(dtype)
    exact = copy.deepcopy(base).float()
    record = export(export_model(base), tmp_path / "export")
    assert 1000 < record["guard"]["smallest_margin"] < float("inf")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert stock.dtype == dtype
    ids = torch.randint(3, 43, (8, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference, own, found = (model(ids).logits[..., :43].float() for model in (exact, base, stock))
    assert (found - reference).square().mean().sqrt() < 1.5 * (own - reference).square().mean().sqrt()
    assert not torch.isnan(stock(ids).logits.float().log_softmax(-1)).any()


def test_decoding_drops_strategies_and_saving_keeps_them(tmp_path):
    record = export(export_model(export_base("llama")), tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    entry = record["strategies"]["code"]
    ids = tokenizer(entry["text"] + "w1 w2").input_ids
    assert ids == [*entry["token_ids"], 4, 5]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "w1 w2"
    assert set(entry["token_ids"]) <= set(tokenizer.all_special_ids)
    assert tokenizer("code strategy:code <|strategy|> <|strategy:co").input_ids == [2] * 4  # unknown words
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, streamer=streamer)
    text = "".join(streamer)
    assert "strategy" not in text
    assert text.startswith("w1 w2")

    expected = model(torch.tensor([ids])).logits
    model.resize_token_embeddings(120)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, reread = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "again"),
        AutoTokenizer.from_pretrained(tmp_path / "again"),
    )
    assert reread(entry["text"] + "w1 w2").input_ids == ids
    torch.testing.assert_close(again(torch.tensor([ids])).logits[..., :96], expected)


def test_chat_template(tmp_path):
    model = chat_palette_model()
    record = export(model, tmp_path / "export", {"math-1": 5, "code": 6})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    messages = [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " How?  "}]
    for arguments in ({}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": False}):
        plain = model.tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
        assert tokenizer.apply_chat_template(messages, tokenize=False, **arguments) == plain
        assert tokenizer.apply_chat_template(messages, tokenize=False, strategy=None, **arguments) == plain
        guided = tokenizer.apply_chat_template(messages, tokenize=False, strategy="math-1", **arguments)
        assert guided == record["strategies"]["math-1"]["text"] + plain
    ids = tokenizer.apply_chat_template(messages, strategy="code", return_dict=False)
    plain_ids = model.tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids == [*record["strategies"]["code"]["token_ids"], *plain_ids]
    with pytest.raises(Exception, match="strategy must be one of code, math-1; got maths"):
        tokenizer.apply_chat_template(messages, strategy="maths")


def bos_tokenizer():
    """A tokenizer that puts BOS (`<eos>` here) in front of any text, as Llama's and Gemma's do."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<eos>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer.chat_template = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}"
    return tokenizer


@pytest.mark.parametrize("position", ["start", "after_bos"])
def test_tokenizers_with_bos(position, tmp_path):
    model = PaletteForCausalLM.from_base(
        tiny_base(bos_token_id=1), tiny_palette(), tokenizer=bos_tokenizer(), prefix_position=position
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        record = model.export_strategy_tokens(tmp_path / "export", {"a": 5})
    told = [str(one.message) for one in seen if "puts BOS in front of any text" in str(one.message)]
    assert len(told) == (1 if position == "start" else 0)
    entry, tokenizer = record["strategies"]["a"], AutoTokenizer.from_pretrained(tmp_path / "export")
    in_front = model.insert_latent_ids([1, 5, 6], [-1])
    expected = [part for one in in_front for part in (entry["token_ids"] if one == -1 else [one])]
    messages = [{"role": "user", "content": "w2 w3"}]
    assert tokenizer.apply_chat_template(messages, strategy="a", return_dict=False) == expected
    if position == "start":  # the documented way
        assert tokenizer(entry["text"] + "<eos> w2 w3", add_special_tokens=False).input_ids == expected
    else:
        assert tokenizer(entry["text"] + "w2 w3").input_ids == expected
    assert tokenizer("w2 w3").input_ids == [1, 5, 6]
    plain = model.tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == plain


@pytest.mark.parametrize("position", ["start", "after_bos"])
def test_masks_of_the_assistants_tokens(position, tmp_path):
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %} {{ m.content }}"
        "{% endgeneration %}{% else %} {{ m.content }}{% endif %}{% endfor %}\n"
    )
    model = PaletteForCausalLM.from_base(
        tiny_base(bos_token_id=1), tiny_palette(), tokenizer=tokenizer, prefix_position=position
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = model.export_strategy_tokens(tmp_path / "export", {"a": 5}, num_prefix_tokens=2)
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    messages = [{"role": "user", "content": "w2 w3"}, {"role": "assistant", "content": "w4 w5"}]
    ask = {"return_dict": True, "return_assistant_tokens_mask": True}
    plain = tokenizer.apply_chat_template(messages, **ask)
    assert sum(plain["assistant_masks"]) == 2
    unguided = exported.apply_chat_template(messages, **ask)
    assert (unguided["input_ids"], unguided["assistant_masks"]) == (plain["input_ids"], plain["assistant_masks"])
    guided = exported.apply_chat_template(messages, strategy="a", **ask)
    if position == "start":
        assert guided["assistant_masks"] == [0, 0, *plain["assistant_masks"]]
    told = [one for one in record["warnings"] if "return_assistant_tokens_mask" in one]
    assert len(told) == (position == "after_bos")


def llama2_tokenizer():
    """One that marks the first word of a text (`▁hello`) and puts BOS in front, as Llama 2's and Mistral's do."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"whelo", "ll", "he", "llo", "hello", "▁hello", "wo", "▁wo"]
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("▁", "hello"), ("w", "o"), ("▁", "wo")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


@pytest.mark.parametrize("position", ["start", "after_bos"])
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_tokenizers_that_mark_the_first_word(template, position, tmp_path):
    """Behind a strategy they mark no word, so that its text is no way to use it; its ids are."""
    base, tokenizer = export_base("llama"), llama2_tokenizer()
    base.config.bos_token_id = 1
    tokenizer.chat_template = template
    model = export_model(base, prefix_position=position)
    with pytest.warns(UserWarning, match="reads a text behind a strategy otherwise than on its own") as seen:
        record = model.export_strategy_tokens(tmp_path / "out", {"a": 5}, num_prefix_tokens=2, tokenizer=tokenizer)
    told = [str(one.message) for one in seen if one.category is UserWarning]
    assert told == record["warnings"]  # none of them says that writing the BOS behind the strategy were enough
    assert len(told) == (1 if template is None else 2)
    assert all("Put the strategy's `token_ids`" in one for one in told)
    assert any("this chat template's text is tokenised otherwise" in one for one in told) == (template is not None)

    entry, reread = record["strategies"]["a"], AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = reread("hello wo").input_ids
    assert plain == tokenizer("hello wo").input_ids == [1, 13, 15]
    text = entry["text"] + ("<s>" if position == "start" else "") + "hello wo"
    assert reread(text, add_special_tokens=position != "start").input_ids[-2:] == [12, 15]  # the fault is there
    at = 0 if position == "start" else 1
    ids = torch.tensor([plain[:at] + entry["token_ids"] + plain[at:]])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    found = stock.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    prefix, embedding = (
        model.palette.decode(model.latents_from_codes(torch.tensor([5]), 2))[0],
        base.get_input_embeddings(),
    )
    embeds = embedding(torch.tensor(plain))
    spliced = torch.cat([embeds[:at], prefix.to(embeds), embeds[at:]])[None]
    assert found == base.generate(inputs_embeds=spliced, max_new_tokens=6, do_sample=False)[0].tolist()


def test_the_record(tmp_path):
    model = tiny_palette_model()
    record = export(model, tmp_path / "export", {"a": {"domain": "math", "latent_seed": 3}, "b": torch.zeros(4)})
    assert json.loads((tmp_path / "export" / "strategies.json").read_text()) == record
    a, b = record["strategies"]["a"], record["strategies"]["b"]
    assert a["code"] == int(model.draw_codes(1, "math", torch.Generator().manual_seed(3)))
    assert (a["domain"], a["num_prefix_tokens"], a["latent_tile"]) == ("math", 4, False)
    assert (b["code"], b["domain"], b["latent_tile"]) == (None, None, True)
    assert len(set(b["token_ids"])) == 1
    assert record["latent_fingerprint"] == model.latent_fingerprint()


def test_one_latent_is_tiled_as_in_generate(tmp_path):
    """`(1, Z)` is one latent of one sequence, as `generate` takes it, and no matrix of one row."""
    model, latent = tiny_palette_model(), torch.randn(1, 4)
    model.train().model.layers[0].eval()  # a frozen part of a model in training
    modes = [module.training for module in model.modules()]
    record = export(model, tmp_path / "export", {"a": latent, "b": latent.tolist(), "c": latent[0]})
    for entry in record["strategies"].values():
        assert (len(entry["token_ids"]), entry["num_prefix_tokens"], entry["latent_tile"]) == (LENGTH, LENGTH, True)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give either `strategies` .by name. or `num_strategies`"),
        ({"strategies": {"a": 1}, "num_strategies": 2}, "Give either `strategies`"),
        ({"strategies": {"a": 1}, "domain": "math"}, "`domain` and `latent_seed` are for `num_strategies` draws"),
        ({"strategies": {}}, "`strategies` must map names to latents, got {}"),
        ({"strategies": {"a b": 1}}, "has the name 'a b'; a name is letters"),
        ({"strategies": {"a": 1 << 30}}, r"`strategies\['a'\]`: `latent` holds the code 1073741824"),
        ({"strategies": {"a": {"domain": "x"}}}, r"`strategies\['a'\]`: `domain`='x' is unknown"),
        ({"strategies": {"a": {"temperature": 1}}}, r"`strategies\['a'\]` has \['temperature'\]; allowed are"),
        ({"strategies": {"a": torch.zeros(3)}}, r"`strategies\['a'\]`: `latent` must be a code"),
        ({"strategies": {"a": {}}}, r"`strategies\['a'\]`=\{\} asks for nothing. Give a code, a float tensor"),
        ({"strategies": {"a": None}, "num_prefix_tokens": 4}, r"`strategies\['a'\]`=None asks for nothing"),
        (
            {"strategies": {"a": torch.zeros(3, 4)}, "num_prefix_tokens": 8},
            r"`num_prefix_tokens`=8 contradicts `latent` of shape \(1, 3, 4\).* A strategy may be a dict of its own",
        ),
        ({"strategies": {"a": torch.zeros(3, 4)}, "latent_tile": True}, "`latent_tile` contradicts `latent` of shape"),
        ({"num_strategies": 0}, "`num_strategies` must be an integer of at least 1, got 0"),
        ({"num_strategies": 1, "domain": "x"}, "`domain`='x' is unknown"),
        ({"num_strategies": 1, "guard": "hope"}, "`guard` must be one of .*, got 'hope'"),
        (
            {"num_strategies": 1, "guard": "bias"},
            "`guard`='bias' does not fit this base, whose last norm is a Qwen3",
        ),
    ],
)
def test_refused_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_palette_model().export_strategy_tokens(tmp_path / "export", **arguments)
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_refused_models(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match="exists and is not empty"):
        tiny_palette_model().export_strategy_tokens(tmp_path / "used", {"a": 1})
    with pytest.raises(ValueError, match="has no palette"):
        PaletteForCausalLM.from_base(tiny_base()).export_strategy_tokens(tmp_path / "out", {"a": 1})
    with pytest.raises(ValueError, match="has no tokenizer. Give `tokenizer`"):
        PaletteForCausalLM.from_base(tiny_base(), tiny_palette()).export_strategy_tokens(tmp_path / "out", {"a": 1})
    small = PaletteForCausalLM.from_base(tiny_base(vocab_size=40), tiny_palette(), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="has tokens up to id 42, but the base's vocabulary has 40 rows"):
        small.export_strategy_tokens(tmp_path / "out", {"a": 1})
    reserved = PaletteForCausalLM.from_base(tiny_base(vocab_size=80), tiny_palette(), tokenizer=tiny_tokenizer())
    reserved.generation_config.eos_token_id = [1, 44]
    with pytest.raises(ValueError, match=r"gives its new tokens the ids \[44\], which are in use"):
        reserved.export_strategy_tokens(tmp_path / "out", {"a": 1})
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "w0": 3, "w1": 40}
    gaps = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")), pad_token="<pad>", eos_token="<eos>"
    )
    with pytest.raises(ValueError, match="ids have gaps: it gives .* the ids 5 to 12, but has one with id 40"):
        tiny_palette_model().export_strategy_tokens(tmp_path / "out", {"a": 1}, tokenizer=gaps)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|strategy:a:0|>"])
    with pytest.raises(ValueError, match=r"has a token '<\|strategy:a:0\|>' already"):
        tiny_palette_model().export_strategy_tokens(tmp_path / "out", {"a": 1}, tokenizer=tokenizer)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=48,
    )  # fmt: skip
    capped = PaletteForCausalLM.from_base(
        AutoModelForCausalLM.from_config(config), tiny_palette(), tokenizer=tiny_tokenizer()
    )
    with pytest.raises(ValueError, match="caps its logits at 30.0 .*guard='suppress_tokens'"):
        capped.export_strategy_tokens(tmp_path / "out", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


@pytest.mark.parametrize(
    ("family", "guard"),
    [
        ("gemma4_text", "suppress_tokens"),  # a table for each layer is indexed by token id
        ("mamba", "channel"),
        ("olmo2", "suppress_tokens"),
        ("deepseek_v3", "channel"),
        ("mixtral", "channel"),
    ],
)
def test_families_against_spliced_logits(family, guard, tmp_path):
    if not is_known(family):
        pytest.skip(f"no {family} in this version of transformers")
    case = case_of(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of guards
        record = case.model.export_strategy_tokens(
            tmp_path / "export",
            {f"row-{row}": int(code) for row, code in enumerate(CODES)},
            num_prefix_tokens=family_checks.LENGTH,
            guard=guard,
            tokenizer=tiny_tokenizer(),
        )
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    taken = [one for entry in record["strategies"].values() for one in entry["token_ids"]]
    kept = torch.tensor([token for token in range(100) if token not in taken])
    with torch.no_grad():
        for row, tokens in enumerate(family_checks.PROMPTS):
            ids = record["strategies"][f"row-{row}"]["token_ids"] + tokens
            found = stock(input_ids=torch.tensor([ids]), use_cache=False).logits
            reference = case.by_hand(row, tokens).logits
            torch.testing.assert_close(found[..., kept], reference[..., kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "guard", "message"),
    [
        ("helium", "auto", "HeliumForCausalLM does not run with `guard`='channel'.*Use `guard='suppress_tokens'`"),
        ("moshi", "suppress_tokens", "MoshiForCausalLM cannot be given a larger vocabulary and a head of its own"),
        ("cohere", "auto", r"\(CohereLayerNorm\) is not an RMSNorm"),
        ("zamba2", "auto", "its sizes follow `hidden_size`"),
    ],
)
def test_families_without_a_guard_are_refused(family, guard, message, tmp_path):
    if not is_known(family):
        pytest.skip(f"no {family} in this version of transformers")
    with pytest.raises(ValueError, match=message):
        case_of(family).model.export_strategy_tokens(
            tmp_path / "export", {"a": 1}, guard=guard, tokenizer=tiny_tokenizer()
        )
    assert not list(tmp_path.iterdir())


def test_adapters_must_be_merged(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_palette_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="holds adapters, which a stock checkpoint does not. Merge them first"):
        model.export_strategy_tokens(tmp_path / "out", {"a": 1})
    export(adapted.merge_and_unload(), tmp_path / "out", {"a": 1})


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "falcon_h1"])
def test_peft_decodes_what_the_palette_does(family, tmp_path):
    peft = pytest.importorskip("peft")
    export_base(family).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = export_model(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of PEFT's decoding with a cache, which is tested below
        record = model.export_prompt_tuning(tmp_path / "adapter", domain="math", latent_seed=3, num_prefix_tokens=6)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["num_virtual_tokens"]) == ("PROMPT_TUNING", 6)
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    rows = model.palette.decode(model.latents_from_codes(torch.tensor([record["code"]]), 6)[0])
    prompts = word_prompts()
    for length in range(1, 11):
        same = [prompt for prompt in prompts if len(prompt) == length]
        ids = torch.tensor(same)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = adapted.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=False,
            )
        assert found[:, length:].tolist() == spliced_greedy(base, [rows] * len(same), same)


def test_the_export_tells_what_peft_does_with_a_cache(tmp_path):
    """Whether these versions decode rightly with a cache is measured at export; the warning must agree with PEFT."""
    peft = pytest.importorskip("peft")
    export_base("llama").save_pretrained(tmp_path / "base")
    model = export_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        record = model.export_prompt_tuning(tmp_path / "adapter", latent=5, num_prefix_tokens=LENGTH)
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        lengths = []
        hook = adapted.get_base_model().model.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(
                (kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]).shape[1]
            ),
            with_kwargs=True,
        )
        adapted.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
        hook.remove()
    assert lengths in ([7, 1, 1], [7, 5, 5])
    assert any("inserts the virtual tokens again" in warning for warning in record["warnings"]) == (lengths[1] == 5)


def test_refused_adapters(tmp_path):
    pytest.importorskip("peft")
    model = tiny_palette_model()
    with pytest.raises(ValueError, match="this one was built in memory. Give `base_model_name_or_path`"):
        model.export_prompt_tuning(tmp_path / "out", latent=5)
    tiny_base(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="base weights are not those of the base '.*other'"):
        model.export_prompt_tuning(tmp_path / "out", latent=5, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="`latent` and `domain` exclude each other"):
        model.export_prompt_tuning(
            tmp_path / "out", latent=5, domain="math", base_model_name_or_path=str(tmp_path / "other")
        )
    behind = PaletteForCausalLM.from_base(tiny_base(bos_token_id=1), tiny_palette(), prefix_position="after_bos")
    with pytest.raises(ValueError, match="`prefix_position` is 'after_bos', but PEFT puts virtual tokens in front"):
        behind.export_prompt_tuning(tmp_path / "out", latent=5)
    export_base("falcon_h1").save_pretrained(tmp_path / "falcon")
    falcon = export_model(AutoModelForCausalLM.from_pretrained(tmp_path / "falcon"))
    with pytest.raises(ValueError, match="FalconH1ForCausalLM do not give the palette model's logits"):
        falcon.export_prompt_tuning(tmp_path / "out", latent=5)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "falcon"}  # nothing half-written
    assert {path.name for path in tmp_path.iterdir()} == {"other", "falcon"}


def test_the_example(tmp_path):
    """`examples/08_export.py` on a tiny palette: what the exports answer in a process without the package."""
    pytest.importorskip("peft")
    tiny_base(initializer_range=0.5).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PaletteForCausalLM.from_base(base, tiny_palette(), tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path / "palette", palette_only=True)
    script = Path(__file__).parents[1] / "examples" / "08_export.py"
    done = subprocess.run(
        [sys.executable, str(script), "--model", str(tmp_path / "palette"), "--output_dir", str(tmp_path / "out")]
        + ["--prompts", "w1 w2", "w3", "--max_new_tokens", "6"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 of 2 answers as `generate(latent=)`") == 3
    assert "through PEFT" in done.stdout
