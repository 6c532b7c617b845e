"""Checkpoints: what is written loads again, the same, in any dtype; what is damaged is refused."""

import copy
import importlib.util
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from entry_imports import entries
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trainer_testing import LATENT, tiny_base, tiny_palette, tiny_palette_model, tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

from reasoning_palette.modeling_palette import (
    PaletteConfig,
    PaletteForCausalLM,
    PaletteVAE,
    load_palette,
    saved_palette,
    shipped_code,
)
from reasoning_palette.modeling_palette.palette_card import hub_name

IDS = torch.tensor([[5, 6, 7]])


def saved_base(folder):
    base = tiny_base()
    base.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model():
    return tiny_palette_model()


@pytest.fixture
def palette_only(tmp_path):
    model = PaletteForCausalLM.from_base(str(saved_base(tmp_path / "base")), tiny_palette(), num_prefix_tokens=4)
    model.save_pretrained(tmp_path / "palette", palette_only=True)
    return model, tmp_path / "palette"


def logits_with_prefix(model):
    ids = torch.cat([model.latent_ids(torch.tensor([(1 << 20) + 3]), 4), IDS], 1)
    with torch.no_grad():
        return model(ids).logits


def test_full_checkpoint_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert isinstance(reloaded, PaletteForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits_with_prefix(reloaded), logits_with_prefix(model))
    reloaded.save_pretrained(tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")}
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stock_class_reads_the_base_weights_of_a_full_checkpoint(model, tmp_path):
    """Keys of the base keep their names, so engines without a palette can use the weights."""
    model.save_pretrained(tmp_path)
    base = tiny_base()
    stock, info = type(base).from_pretrained(tmp_path, config=model.config.base_config, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(key.startswith("palette.") for key in info["unexpected_keys"])
    assert torch.equal(stock(IDS).logits, base(IDS).logits)


def test_palette_only_checkpoint_round_trip(palette_only):
    model, folder = palette_only
    names = {path.name for path in folder.iterdir()}
    assert "palette.safetensors" in names
    assert "model.safetensors" not in names
    for auto in (AutoModelForCausalLM, AutoModel):
        reloaded = auto.from_pretrained(folder)
        assert torch.equal(logits_with_prefix(reloaded), logits_with_prefix(model))
        assert reloaded.generate(IDS, domain="math", max_new_tokens=2).shape == (1, 5)
    assert reloaded.config.num_prefix_tokens == 4
    tensors = load_file(folder / "palette.safetensors")
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert (folder / "palette.safetensors").stat().st_size <= 1.05 * payload


def test_palette_from_a_checkpoint_keeps_its_codes(palette_only):
    model, folder = palette_only
    moved = PaletteForCausalLM.from_base(tiny_base(), palette=str(folder))
    assert moved.config.domains == model.config.domains
    assert torch.equal(logits_with_prefix(moved), logits_with_prefix(model))


def test_full_checkpoint_of_a_palette_only_model_stays_full(palette_only, tmp_path):
    reloaded = AutoModelForCausalLM.from_pretrained(palette_only[1])
    reloaded.save_pretrained(tmp_path / "full")
    assert json.loads((tmp_path / "full" / "config.json").read_text())["palette_only"] is False
    assert torch.equal(
        logits_with_prefix(AutoModelForCausalLM.from_pretrained(tmp_path / "full")), logits_with_prefix(reloaded)
    )


def test_tokenizer_is_kept_and_saved(model, palette_only, tmp_path):
    model.save_pretrained(tmp_path / "full")
    for folder in (tmp_path / "full", palette_only[1]):
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == tiny_tokenizer().get_vocab()
        reloaded = AutoModelForCausalLM.from_pretrained(folder)
        assert reloaded.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    generator = pipeline("text-generation", model=str(tmp_path / "full"))
    texts = {
        domain: generator("w3 w4", domain=domain, max_new_tokens=8, do_sample=False) for domain in ("math", "code")
    }
    replayed = generator("w3 w4", latent=5, num_prefix_tokens=2, max_new_tokens=8, do_sample=False)
    expected = reloaded.tokenizer.decode(
        model.generate(
            **tiny_tokenizer()("w3 w4", return_tensors="pt"),
            latent=5,
            num_prefix_tokens=2,
            max_new_tokens=8,
            do_sample=False,
        )[0],
        skip_special_tokens=True,
    )
    assert replayed[0]["generated_text"].replace(" ", "") == expected.replace(" ", "")
    assert texts["math"] != texts["code"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_palette_loaded_in_another_dtype_is_the_same_and_can_be_saved_again(model, tmp_path, dtype):
    model.save_pretrained(tmp_path / "one")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=dtype)
    assert reloaded.dtype == dtype
    assert reloaded.palette.trained.dtype == torch.bool
    assert reloaded.latent_fingerprint() == model.latent_fingerprint()
    reloaded.config.base_model_name_or_path = "base"
    reloaded.save_pretrained(tmp_path / "two", palette_only=True)
    palette, _ = load_palette(tmp_path / "two")  # refuses tensors of another dtype
    assert all(torch.equal(value, palette.state_dict()[name]) for name, value in model.palette.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_palette_stays_float32_in_any_dtype(model, tmp_path, dtype):
    model.save_pretrained(tmp_path / "one")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=dtype)
    cast = copy.deepcopy(model).to(dtype)
    for candidate in (reloaded, cast):
        assert candidate.get_input_embeddings().weight.dtype == dtype
        for name, tensor in candidate.palette.state_dict().items():
            assert torch.equal(tensor, model.palette.state_dict()[name]), name
        assert logits_with_prefix(candidate).dtype == dtype
    reloaded.save_pretrained(tmp_path / "two")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert again.dtype == dtype
    assert torch.equal(again.palette.domain_means, model.palette.domain_means)


def test_a_deep_copy_is_independent(model):
    copied = copy.deepcopy(model)
    assert torch.equal(logits_with_prefix(copied), logits_with_prefix(model))
    copied.palette.embedding_mean += 1
    assert not torch.equal(logits_with_prefix(copied), logits_with_prefix(model))


def test_config_reads_and_writes_through_to_the_base(model):
    base = tiny_base()
    before = base.config._attn_implementation
    wrapped = PaletteForCausalLM.from_base(base)
    assert base.config._attn_implementation == before == wrapped.config._attn_implementation
    assert wrapped.config.hidden_size == base.config.hidden_size
    assert wrapped.config.get_text_config() is base.config
    wrapped.config.use_cache = False
    assert wrapped.model.config.use_cache is False
    assert "use_cache" not in vars(wrapped.config)
    with pytest.raises(AttributeError, match="no_such_thing"):
        wrapped.config.no_such_thing  # noqa: B018


def test_random_weights_from_a_config(model):
    built = AutoModelForCausalLM.from_config(model.config)
    assert isinstance(built, PaletteForCausalLM)
    assert built.palette.latent_dim == LATENT
    assert built.palette.domain_means.shape == (2, LATENT)


def test_resizing_embeddings_keeps_the_palette(model):
    expected = logits_with_prefix(model)
    model.resize_token_embeddings(60)
    torch.testing.assert_close(logits_with_prefix(model)[..., : expected.shape[-1]], expected)


def test_later_domains_are_saved(model, tmp_path):
    model.palette.fit_domain("riddles", torch.randn(9, LATENT))  # not through the model
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reloaded.config.domains["riddles"] == {"source": 3, "count": 9}
    assert torch.equal(reloaded.palette.domain_cholesky, model.palette.domain_cholesky)


@pytest.mark.parametrize("palette_only", [False, True])
def test_palettes_without_domains(palette_only, tmp_path):
    base = saved_base(tmp_path / "base")
    model = PaletteForCausalLM.from_base(str(base), PaletteVAE(32, latent_dim=4, hidden_sizes=(8,)))
    model.save_pretrained(tmp_path / "palette", palette_only=palette_only)
    loaded = PaletteForCausalLM.from_pretrained(tmp_path / "palette").palette.state_dict()
    for name, tensor in model.palette.state_dict().items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype, name
    assert loaded["domain_means"].shape == (0, 4)


def test_auto_map_names_every_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    auto_map = AutoConfig.from_pretrained(tmp_path).auto_map
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    for target in auto_map.values():
        assert (tmp_path / f"{target.split('.')[0]}.py").is_file()
    assert (tmp_path / "trainers" / "palette_sft_trainer.py").is_file()


def test_wrong_bases_and_palettes_are_refused(model, palette_only):
    with pytest.raises(ValueError, match="PaletteQwen3ForCausalLM, which has a palette already"):
        PaletteForCausalLM.from_base(model)
    base = tiny_base()
    with pytest.raises(ValueError, match="decodes to hidden_size=16, but the base's input embedding has width 32"):
        PaletteForCausalLM.from_base(base, PaletteVAE(16))
    PaletteForCausalLM.from_base(base, tiny_palette())
    with pytest.raises(ValueError, match="already carries a palette on its input embedding"):
        PaletteForCausalLM.from_base(base, tiny_palette())
    with pytest.raises(TypeError, match="`base` must be a transformers model, a folder or a Hub id, got Linear"):
        PaletteForCausalLM.from_base(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="`palette` must be a PaletteVAE, a folder or a Hub id, got int"):
        PaletteForCausalLM.from_base(tiny_base(), palette=3)
    with pytest.raises(TypeError, match=r"\['device_map'\] are for loading a base, but `base` is loaded already"):
        PaletteForCausalLM.from_base(tiny_base(), device_map="cpu")
    with pytest.raises(ValueError, match="is a 'qwen3' checkpoint, not a palette's.*from_base"):
        PaletteForCausalLM.from_pretrained(palette_only[1].parent / "base")
    with pytest.raises(TypeError, match="PaletteForCausalLM is built on a base: use `PaletteForCausalLM.from_base"):
        PaletteForCausalLM(model.config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_id_base": 40}, "vocabulary has 43 entries and collides with the latent ids.*Set `latent_id_base`"),
        ({"num_codes": 1 << 26}, "collide with the end of int32"),
        ({"num_prefix_tokens": 65}, "`num_prefix_tokens`=65 is larger than `max_prefix_tokens`=64"),
        ({"num_prefix_tokens": 0}, "`num_prefix_tokens` must be at least 1, got 0"),
        ({"latent_seed": -1}, r"`latent_seed` must be from 0 to 18446744073709551615, got -1"),
        ({"prefix_position": "end"}, "`prefix_position` must be one of .*got 'end'"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_codes": True}, "`num_codes` takes integers, got True"),
        ({"num_prefix_tokens": 2.0}, r"`num_prefix_tokens` takes integers, got 2\.0"),
        ({"max_prefix_tokens": "64"}, "`max_prefix_tokens` takes integers, got '64'"),
        ({"latent_seed": "5"}, "`latent_seed` takes integers, got '5'"),
        ({"latent_id_base": 2.0**24}, r"`latent_id_base` takes integers, got 16777216\.0"),
        ({"latent_dim": True}, "`latent_dim` takes integers, got True"),
        (
            {"encoder_hidden_sizes": "512"},
            r"`encoder_hidden_sizes` must be a list of widths such as \[512\], got '512'",
        ),
        ({"encoder_hidden_sizes": ["512"]}, "`encoder_hidden_sizes` takes integers, got '512'"),
        ({"palette_only": "yes"}, "`palette_only` must be True or False, got 'yes'"),
        ({"base_model_name_or_path": Path("base")}, r"`base_model_name_or_path` must be a string or None, got .*Path"),
        ({"domains": ["math"]}, r"`domains` must map names to sources and counts, got \['math'\]"),
        ({"domains": {"math": 1}}, r"`domains` must map names to {\"source\": int, .*, got 'math': 1"),
        (
            {"domains": {"math": {"source": "1", "count": 1}}},
            r"`domains\['math'\]\['source'\]` takes integers, got '1'",
        ),
    ],
)
def test_fields_of_another_type_are_refused(fields, message):
    with pytest.raises(TypeError, match=message):
        PaletteConfig(base_config=tiny_base().config, **fields)


def test_unknown_decoders_are_refused():
    with pytest.raises(ValueError, match="`decoder_type` must be one of .*'mlp'.*got 'foo'"):
        PaletteConfig(base_config=tiny_base().config, decoder_type="foo")


def test_attributes_of_the_base_that_a_config_is_given_reach_the_base():
    given = tiny_base().config
    config = PaletteConfig(base_config=given, pad_token_id=7, use_cache=False, gradient_checkpointing=True)
    assert (config.base_config.pad_token_id, config.base_config.use_cache) == (7, False)
    assert config.base_config.gradient_checkpointing
    assert (given.pad_token_id, given.use_cache) == (0, True)  # a copy is changed
    again = PaletteConfig.from_dict(config.to_dict())
    assert (again.base_config.pad_token_id, again.pad_token_id, again.use_cache) == (7, 7, False)


def test_a_config_without_a_base_is_refused():
    with pytest.raises(ValueError, match="`base_config` is None"):
        PaletteConfig()
    with pytest.raises(ValueError, match="`base_config` has model_type='unheard_of'"):
        PaletteConfig(base_config={"model_type": "unheard_of"})


def test_an_in_memory_base_has_no_palette_only_checkpoint(model, tmp_path):
    with pytest.raises(ValueError, match="Set `model.config.base_model_name_or_path`"):
        model.save_pretrained(tmp_path, palette_only=True)
    with pytest.raises(ValueError, match="This model has no palette"):
        PaletteForCausalLM.from_base(tiny_base()).save_pretrained(tmp_path, palette_only=True)
    assert not list(tmp_path.iterdir())


def test_a_changed_layout_is_not_saved(model, tmp_path):
    model.config.latent_seed = 5
    with pytest.raises(ValueError, match="codes drawn so far would lose their meaning"):
        model.save_pretrained(tmp_path)


def damage(folder, change):
    tensors = load_file(folder / "palette.safetensors")
    change(tensors)
    save_file(tensors, folder / "palette.safetensors")


DAMAGES = [
    (lambda tensors: tensors.pop("domain_means"), "`domain_means` is nothing, expected .*2, 4"),
    (lambda tensors: tensors.pop("embedding_mean"), "holds no palette: `embedding_mean` is missing"),
    (lambda tensors: tensors.update(extra=torch.zeros(1)), "`extra` is .*expected nothing"),
    (lambda tensors: tensors.update(domain_means=torch.zeros(2, 5)), "`domain_means` is .*2, 5.*expected .*2, 4"),
    (lambda tensors: tensors.update(domain_means=torch.zeros(2, 4).half()), "'F16'.*expected .*'F32'"),
    (lambda tensors: tensors["domain_means"].fill_(float("nan")), "holds NaN or infinity in `domain_means`"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_damaged_palettes_are_refused(palette_only, change, message):
    damage(palette_only[1], change)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(palette_only[1])
    with pytest.raises(ValueError, match=message):
        load_palette(str(palette_only[1]))


def test_a_truncated_or_missing_palette_is_refused(palette_only):
    file = palette_only[1] / "palette.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"palette.safetensors of .* is damaged"):
        load_palette(str(palette_only[1]))
    file.unlink()
    with pytest.raises(OSError, match=r"palette\.safetensors"):
        load_palette(str(palette_only[1]))


def test_a_full_checkpoint_without_its_palette_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("palette.decoder")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"does not fit its config: `decoder\.0\.bias` is nothing, expected \(\(16,\)"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_palette_only_loads_pass_their_arguments_to_the_base(palette_only):
    for loader in (PaletteForCausalLM, AutoModelForCausalLM):
        model = loader.from_pretrained(palette_only[1], dtype=torch.bfloat16, attn_implementation="eager")
        assert model.dtype == torch.bfloat16
        assert model.model.config._attn_implementation == "eager"
        assert model.config._attn_implementation == "eager"


def test_a_palette_moved_to_another_base_names_that_base(palette_only, tmp_path):
    other = tiny_base(seed=7)
    other.save_pretrained(tmp_path / "other")
    moved = PaletteForCausalLM.from_base(str(tmp_path / "other"), palette=str(palette_only[1]))
    assert moved.config.base_model_name_or_path == str(tmp_path / "other")
    moved.save_pretrained(tmp_path / "moved", palette_only=True)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert torch.equal(reloaded.lm_head.weight, other.lm_head.weight)


def test_the_name_of_a_relative_folder_is_never_taken_for_an_id(tmp_path, monkeypatch):
    saved_base(tmp_path / "out" / "base")
    monkeypatch.chdir(tmp_path)
    given = PaletteForCausalLM.from_base("out/base", tiny_palette())
    loaded = PaletteForCausalLM.from_base(AutoModelForCausalLM.from_pretrained("out/base"), tiny_palette())
    named = PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), base_model_name_or_path="out/base")
    for model in (given, loaded, named):
        assert model.config.base_model_name_or_path == "./out/base"
    given.save_pretrained("palette", palette_only=True)
    assert torch.equal(logits_with_prefix(AutoModelForCausalLM.from_pretrained("palette")), logits_with_prefix(given))
    shutil.rmtree("out")
    assert hub_name(given.config.base_model_name_or_path) is None
    assert hub_name("out/base") == "out/base"  # what it would pass for
    unsaved = PaletteForCausalLM.from_base(tiny_base(), tiny_palette(), base_model_name_or_path="org/base")
    assert unsaved.config.base_model_name_or_path == "org/base"


def test_a_copy_before_the_tokenizer_is_looked_up_and_a_pickle(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    copied = copy.deepcopy(reloaded)
    copied.save_pretrained(tmp_path / "two")
    assert copied.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    unpickled = pickle.loads(pickle.dumps(reloaded))
    assert torch.equal(logits_with_prefix(unpickled), logits_with_prefix(model))


def test_copies_and_pickles_of_a_model_lack_the_token_it_was_loaded_with(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", token="a-secret", local_files_only=True)
    assert reloaded._location["token"] == "a-secret"
    for copied in (copy.deepcopy(reloaded), pickle.loads(pickle.dumps(reloaded))):
        assert copied._location == {"local_files_only": True}
    assert b"a-secret" not in pickle.dumps(reloaded)
    reloaded.save_pretrained(tmp_path / "two")
    assert not [path for path in (tmp_path / "two").rglob("*.*") if b"a-secret" in path.read_bytes()]


def test_adapters_of_add_adapter_do_not_lose_the_palette(model, tmp_path, monkeypatch):
    # transformers 5.24 asks for PEFT 0.22, which came out later than it
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.2")
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="the palette would be lost"):
        model.save_pretrained(tmp_path)


def test_a_full_checkpoint_is_no_palette_only_one(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a full checkpoint, and a palette is loaded from a palette-only one"):
        PaletteForCausalLM.from_base(tiny_base(), palette=str(tmp_path))


def test_a_palette_only_checkpoint_has_its_bases_generation_config(model, tmp_path):
    model.generation_config.eos_token_id = [1, 5]
    model.config.base_model_name_or_path = "org/base"
    model.save_pretrained(tmp_path, palette_only=True)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 5]


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_auto_is_the_dtype_of_the_weights(model, tmp_path, name):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for loader in (PaletteForCausalLM, type(model), AutoModelForCausalLM):
        reloaded = loader.from_pretrained(tmp_path, **{name: "auto"})
        assert reloaded.dtype == reloaded.lm_head.weight.dtype == torch.bfloat16
        assert reloaded.config.dtype == torch.bfloat16


def test_a_palette_from_the_meta_device_is_a_fresh_one(model):
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model.config)
    built.to_empty(device="cpu")
    for buffer in built.palette.buffers():  # what memory happens to hold
        buffer.fill_(1)
    built.init_weights()
    palette = built.palette
    assert torch.equal(palette.normal_quantiles, model.palette.normal_quantiles)
    assert torch.equal(palette.domain_cholesky, torch.eye(LATENT).repeat(2, 1, 1))
    assert not palette.trained
    assert not palette.embedding_mean.any()
    assert 0.5 < palette.decode(torch.randn(1000, LATENT)).std() < 2  # 1 on average over decoders


def test_initialising_again_leaves_a_given_palette_alone(model, tmp_path):
    model.save_pretrained(tmp_path)
    for given in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        before = {name: tensor.clone() for name, tensor in given.palette.state_dict().items()}
        given.init_weights()
        assert all(torch.equal(tensor, before[name]) for name, tensor in given.palette.state_dict().items())


def test_gradient_checkpointing_of_a_config_reaches_the_base(model):
    model.config.gradient_checkpointing = True
    assert AutoModelForCausalLM.from_config(model.config).is_gradient_checkpointing


def test_a_base_that_is_gone_or_not_named_is_missed_by_name(tmp_path):
    saved_base(tmp_path / "base")
    model = PaletteForCausalLM.from_base(str(tmp_path / "base"), tiny_palette())
    model.save_pretrained(tmp_path / "palette", palette_only=True)
    shutil.rmtree(tmp_path / "base")
    way_out = r"Load it on a copy of the base with `PaletteForCausalLM\.from_base"
    with pytest.raises(OSError, match=rf"names '.*base' as its base, which is no folder of this machine.*{way_out}"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "palette")
    config = json.loads((tmp_path / "palette" / "config.json").read_text())
    (tmp_path / "palette" / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which base it belongs to"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "palette")
    again = PaletteForCausalLM.from_base(tiny_base(), str(tmp_path / "palette"))
    assert again.latent_fingerprint() == model.latent_fingerprint()


def test_a_palette_is_pinned_to_the_commit_of_its_base(tmp_path):
    """`config._commit_hash` is gone in transformers 5.24: the cache knows which commit was loaded."""
    commit, repository = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    tiny_base().save_pretrained(repository / "snapshots" / commit)
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    assert PaletteForCausalLM.from_base("org/base", **cached).config.base_model_revision == commit
    folder = repository / "snapshots" / commit
    assert PaletteForCausalLM.from_base(folder).config.base_model_revision is None


@pytest.fixture
def code_without_the_package(model, tmp_path, monkeypatch):
    """A checkpoint in `one`; code is copied as by transformers' copies of the modules that the model imports."""
    model.save_pretrained(tmp_path / "one")
    (tmp_path / "cache").mkdir()
    for path in (tmp_path / "one").glob("*.py"):
        if path.name != "custom_generate.py":
            shutil.copyfile(path, tmp_path / "cache" / path.name)
    spec = importlib.util.spec_from_file_location("shipped_code", tmp_path / "cache" / "shipped_code.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    monkeypatch.setattr(saved_palette, "copy_code", copied.copy_code)
    return tmp_path / "one"


def modules(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_code_that_is_not_the_palettes_stays_where_it_is(code_without_the_package, tmp_path):
    shipped = modules(code_without_the_package)
    package = Path(shipped_code.__file__).parent
    own = {path.name for path in package.glob("[!_]*.py")}
    trainers = [entry for entry in entries() if entry.parent.name == "trainers"]
    led_to = {file for entry in trainers for file in (entry, *map(Path, get_relative_import_files(entry)))}
    assert shipped == own | {f"trainers/{file.name}" for file in led_to}
    for name in ("my_private_job.py", "trainers/my_private_job.py"):
        (code_without_the_package / name).write_text("TOKEN = 'secret'")
    AutoModelForCausalLM.from_pretrained(code_without_the_package).save_pretrained(tmp_path / "two")
    assert modules(tmp_path / "two") == shipped


@pytest.mark.parametrize("target", ["one", "two"])
def test_a_push_of_the_folder_that_was_loaded_has_its_code(code_without_the_package, target, tmp_path, monkeypatch):
    shipped, uploaded = modules(code_without_the_package), []
    (code_without_the_package / "my_private_job.py").write_text("TOKEN = 'secret'")
    model = AutoModelForCausalLM.from_pretrained(code_without_the_package)
    monkeypatch.setattr(type(model), "_upload", lambda self, folder, repo_id, files, **kwargs: uploaded.extend(files))
    model.save_pretrained(tmp_path / target, push_to_hub=True, repo_id="org/x")
    assert {name for name in uploaded if name.endswith(".py")} == shipped
    assert {"config.json", "model.safetensors"} < set(uploaded)


def test_a_full_checkpoint_over_a_palette_only_one_leaves_nothing_of_it(palette_only):
    model, folder = palette_only
    (folder / "custom_generate" / "mine.py").write_text("")
    model.save_pretrained(folder)
    assert not (folder / "palette.safetensors").exists()
    assert [path.name for path in (folder / "custom_generate").iterdir()] == ["mine.py"]
    assert torch.equal(logits_with_prefix(PaletteForCausalLM.from_pretrained(folder)), logits_with_prefix(model))


def test_arguments_that_nothing_reads_are_refused(model, tmp_path):
    model.config.base_model_name_or_path = "org/base"
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        model.save_pretrained(tmp_path, palette_only=True, nonsense=3)
    for given in ({"variant": "fp16"}, {"state_dict": model.state_dict()}, {"max_shard_size": "1MB"}):
        name = next(iter(given))
        with pytest.raises(TypeError, match=f"got '{name}', which is for a model's weights.*Drop one of them"):
            model.save_pretrained(tmp_path, palette_only=True, **given)
    for palette_only in (False, True):
        with pytest.raises(TypeError, match="'tags', which needs push_to_hub=True"):
            model.save_pretrained(tmp_path, palette_only=palette_only, tags=["mine"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["full", "stock", "sharded"])
def test_a_palette_is_not_saved_over_weights(model, tmp_path, kind):
    sizes = {"max_shard_size": "20KB"} if kind == "sharded" else {}
    (tiny_base() if kind == "stock" else model).save_pretrained(tmp_path, **sizes)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    model.config.base_model_name_or_path = "org/base"
    with pytest.raises(ValueError, match=r"holds the weights of a model \(model.*safetensors.*Save to another folder"):
        model.save_pretrained(tmp_path, palette_only=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_palette_of_a_full_checkpoint_warns_of_the_base_that_it_leaves(model, tmp_path):
    model.config.base_model_name_or_path = "org/base"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "of_memory", palette_only=True)
    model.save_pretrained(tmp_path / "full")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with pytest.warns(UserWarning, match="from the full checkpoint .*full'.*it is loaded on 'org/base'"):
        reloaded.save_pretrained(tmp_path / "palette", palette_only=True)


@pytest.mark.parametrize("left", ['{"model_type": "pal', "", "[]"])
def test_a_save_over_what_a_killed_one_left(model, tmp_path, left):
    (tmp_path / "config.json").write_text(left)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_with_prefix(PaletteForCausalLM.from_pretrained(tmp_path)), logits_with_prefix(model))


def test_further_chat_templates_are_not_saved_through_a_link(model, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "additional_chat_templates").symlink_to(outside)
    model.tokenizer = tiny_tokenizer()
    model.tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    with pytest.raises(ValueError, match=r"additional_chat_templates' is a link"):
        model.save_pretrained(tmp_path / "saved")
    assert not list(outside.iterdir())


def test_a_palette_only_save_tells_of_adapters_that_it_leaves_out(palette_only, tmp_path, monkeypatch):
    # transformers 5.24 asks for PEFT 0.22, which came out later than it
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.2")
    model, _ = palette_only
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    before = logits_with_prefix(model)
    model.add_adapter(lora)
    with pytest.warns(UserWarning, match=r"holds adapters.*loaded on '.*base' without them"):
        model.save_pretrained(tmp_path / "again", palette_only=True)
    assert not torch.equal(logits_with_prefix(model), before)
    assert torch.equal(logits_with_prefix(PaletteForCausalLM.from_pretrained(tmp_path / "again")), before)
