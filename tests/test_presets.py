"""The presets of `hub_configs`: read by what reads them at a launch, run on tiny bases, and their figures checked."""

import importlib
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from chat_testing import byte_tokenizer, chat_palette_model
from datasets import Dataset
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
)
from trl import TrlParser
from trl.trainer import utils as trl_utils
from trl.trainer.utils import add_fused_lm_head, get_peak_flops

from reasoning_palette.evaluation.shapes_processor import CHAT_TEMPLATE
from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteForVision2Seq, PaletteVAE
from reasoning_palette.trainers import PaletteGRPOConfig, PaletteGRPOTrainer

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "hub_configs"
sys.path[:0] = [str(PRESETS), str(ROOT / "examples" / "benchmarks")]

import estimate  # noqa: E402
import preset_memory  # noqa: E402
import write_presets  # noqa: E402
from estimates import compute_time, memory, readme_tables, vision_tower  # noqa: E402
from estimates.base_facts import count_parameters, count_parts, empty_model, load_bases  # noqa: E402
from estimates.preset_arguments import STAGES, image_of, palette_bytes, palette_of, parse_preset  # noqa: E402
from estimates.traced_memory import cache_bytes, layer_memory  # noqa: E402
from estimates.training_setup import TrainingSetup, setup_of  # noqa: E402

BASES = load_bases()
EVERY_FILE = pytest.mark.parametrize("stage", STAGES)
EVERY_BASE = pytest.mark.parametrize("name", BASES)
VISION_BASES = [name for name, base in BASES.items() if base.vision]

# What METHOD.md has from the paper, written down a second time.
PUBLISHED = {
    "vae": {"decoder_type": "mlp", "traces_per_source": 5000 // 3 + 1},
    "sft": {"latent_pairing": "prior", "num_prefix_tokens": 1, "max_steps": 10, "traces_per_source": 5000 // 3 + 1},
    "grpo": {"latent_schedule": "linear-decay", "num_prefix_tokens": 8, "num_generations": 8},
}
PUBLISHED["rloo"] = PUBLISHED["grpo"]
# Of its vision-language model: z in R^1024 as 8 x 128, a GPT-style decoder to 8 prefixes, the protocol of VLM-R1.
PUBLISHED_OF_IMAGES = {
    "vae": {"decoder_type": "gpt", "latent_dim": 8 * 128, "num_slots": 8},
    "sft": {"latent_pairing": "prior", "num_prefix_tokens": 8, "max_steps": 10},
    "grpo": {**PUBLISHED["grpo"], "protocol": "vlm-r1"},
}
PUBLISHED_OF_IMAGES["rloo"] = PUBLISHED_OF_IMAGES["grpo"]


def sources(path):
    """Each key's source: what stands behind its value."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {line.partition(":")[0]: line.rpartition("  # ")[2] for line in lines}


def values_named(found, key):
    """All values of a key, anywhere in a result file."""
    if isinstance(found, dict):
        here = [found[key]] if key in found else []
        return here + [value for part in found.values() for value in values_named(part, key)]
    return [value for part in found for value in values_named(part, key)] if isinstance(found, list) else []


# Facts


@pytest.mark.parametrize("name", BASES)
def test_sizes_give_the_published_number_of_parameters(name):
    assert count_parameters(BASES[name].build_config()) == BASES[name].parameters


def test_a_wrong_size_would_show():
    for key, value in {"num_key_value_heads": 16, "head_dim": 64, "tie_word_embeddings": False}.items():
        config = AutoConfig.for_model("qwen3", **{**BASES["qwen3-0.6b"].config, key: value})
        assert count_parameters(config) != BASES["qwen3-0.6b"].parameters, key


def test_revisions_are_whole_commits():
    assert all(len(base.revision) == 40 and int(base.revision, 16) for base in BASES.values())


# Files


def test_files_are_what_stages_and_bases_say():
    """`python hub_configs/write_presets.py` writes them anew."""
    files = {path for path in PRESETS.glob("*/*.yaml") if path.parent.name != "accelerate"}
    written = write_presets.presets()
    assert files == set(written)
    assert {path: path.read_text() for path in files} == written


@EVERY_BASE
@EVERY_FILE
def test_what_launches_it_reads_every_key_as_written(name, stage):
    path = PRESETS / name / f"{stage}.yaml"
    written = yaml.safe_load(path.read_text())
    script_args, args = parse_preset(path)
    read = {**vars(script_args), **vars(args)}
    read["report_to"] = read["report_to"] or "none"  # transformers makes an empty list of it
    assert {key: read[key] for key in written} == written  # numbers stay numbers, "no" stays "no"
    known = {field.name for field in fields(script_args)} | {field.name for field in fields(args)}
    assert written.keys() <= known


@EVERY_FILE
@pytest.mark.parametrize("name", ["qwen3-1.7b", "qwen3-vl-4b"])
def test_no_setting_of_the_demo_is_left_over(name, stage):
    """The scripts have defaults for a model of a million parameters: a preset says otherwise about each of them."""
    path = PRESETS / name / f"{stage}.yaml"
    script, script_class, config_class = STAGES[stage]
    module = importlib.import_module(script)
    parsers = [TrlParser((getattr(module, script_class), config_class)) for _ in range(2)]
    parsers[0].set_defaults(**module.DEMO_SETTINGS)
    line = ["--config", str(path), "--use_cpu", "true"]
    with_demo, without = (parser.parse_args_and_config(line) for parser in parsers)
    assert vars(with_demo[0]) == vars(without[0])
    for field in fields(without[1]):
        if field.init:
            assert getattr(with_demo[1], field.name) == getattr(without[1], field.name), field.name


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text((PRESETS / "qwen3-1.7b" / "sft.yaml").read_text() + "latent_pairings: prior\n")
    with pytest.raises(ValueError, match="Unknown arguments from config file.*latent_pairings"):
        parse_preset(path)


@EVERY_BASE
@EVERY_FILE
def test_every_value_has_a_source_that_holds(name, stage):
    path = PRESETS / name / f"{stage}.yaml"
    written = yaml.safe_load(path.read_text())
    marks = sources(path)
    assert marks.keys() == written.keys()
    published = PUBLISHED_OF_IMAGES if BASES[name].vision else PUBLISHED
    assert {key: written[key] for key, mark in marks.items() if mark == "paper"} == published[stage]
    for key, mark in marks.items():
        kind, _, file = mark.partition(": ")
        assert kind in ("paper", "measured", "unmeasured default", "where"), (key, mark)
        if kind == "measured":
            assert written[key] in values_named(json.loads((ROOT / file).read_text()), key), (key, file)
        if kind == "where":
            assert isinstance(written[key], str)


@EVERY_BASE
def test_each_stage_starts_from_the_one_before(name):
    written = {stage: yaml.safe_load((PRESETS / name / f"{stage}.yaml").read_text()) for stage in STAGES}
    assert written["vae"]["base"] == BASES[name].id
    assert written["sft"]["model"] == written["vae"]["output_dir"]
    assert written["grpo"]["model"] == written["rloo"]["model"] == written["sft"]["output_dir"]
    assert len({stage["output_dir"] for stage in written.values()}) == 4


# Launches


TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
}
SPECIAL = {"pad_token_id": 256, "eos_token_id": 256, "bos_token_id": None}
TINY_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
# Depth, and what names blocks of the tower by their number.
BLOCKS = {
    "qwen2_5_vl": {"depth": 2, "fullatt_block_indexes": [1]},
    "qwen3_vl": {"depth": 2, "deepstack_visual_indexes": [0]},
}
SECTIONS = {"qwen2_5_vl": [2, 3, 3], "qwen3_vl": [4, 2, 2]}  # of M-RoPE, for a head of 16
MARKS = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
MARKS |= {"image": "<|image_pad|>", "video": "<|video_pad|>"}
GEMMA_MARKS = {"image": "<image_soft_token>", "boi": "<start_of_image>", "eoi": "<end_of_image>"}


def tiny_config(name):
    """The preset's base with its own family and switches, and tiny sizes."""
    base = BASES[name]
    if base.vision:
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": SECTIONS[base.model_type]}
        text = {**base.config["text_config"], **TINY, **SPECIAL, "rope_parameters": rope}
        vision = {**base.config["vision_config"], **TINY_TOWER, **BLOCKS[base.model_type]}
        tokenizer = marked_tokenizer(MARKS)
        ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in MARKS.items()}
        return AutoConfig.for_model(
            base.model_type, text_config=text, vision_config=vision, tie_word_embeddings=True, **ids
        )
    if "text_config" in base.config:
        text = {**base.config["text_config"], **TINY, **SPECIAL}
        vision = {**base.config["vision_config"], **TINY_VISION, "image_size": 28}
        tokenizer = marked_tokenizer(GEMMA_MARKS)
        ids = {f"{name}_token_index": tokenizer.convert_tokens_to_ids(token) for name, token in GEMMA_MARKS.items()}
        ids["mm_tokens_per_image"] = 4
        return AutoConfig.for_model(base.model_type, text_config=text, vision_config=vision, **ids)
    return AutoConfig.for_model(base.model_type, **{**base.config, **TINY, **SPECIAL})


def marked_tokenizer(marks):
    """Bytes, and the marks of a processor under their names."""
    tokenizer = byte_tokenizer()
    tokens = ["<|im_start|>", "<|im_end|>", *marks.values()]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer._set_model_specific_special_tokens({f"{name}_token": token for name, token in marks.items()})
    assert tokenizer.pad_token_id == SPECIAL["pad_token_id"] and len(tokenizer) <= TINY["vocab_size"]
    return tokenizer


def tiny_processor(name):
    """The real processor of the preset's base around a tokenizer of bytes; a tokenizer, for bases of text."""
    model_type = BASES[name].model_type
    if model_type == "gemma3":
        size = {"height": 28, "width": 28}
        tokenizer = marked_tokenizer(GEMMA_MARKS)
        return transformers.Gemma3Processor(transformers.Gemma3ImageProcessor(size=size), tokenizer, None, 4)
    if not BASES[name].vision:
        return byte_tokenizer()
    patch_size = AutoConfig.for_model(model_type).vision_config.patch_size
    images = transformers.Qwen2VLImageProcessor(
        patch_size=patch_size, size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    )
    kind = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[model_type]
    videos = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[model_type]
    return getattr(transformers, kind)(
        images, marked_tokenizer(MARKS), getattr(transformers, videos)(patch_size=patch_size), CHAT_TEMPLATE
    )


def save_tiny_base(name, folder):
    torch.manual_seed(0)
    loader = AutoModelForImageTextToText if BASES[name].vision else AutoModelForCausalLM
    loader.from_config(tiny_config(name)).save_pretrained(folder)
    tiny_processor(name).save_pretrained(folder)


def save_traces(folder):
    """Question and answer, and prompt and completion: the columns that the sets named in the presets have."""
    pairs = [(f"{number} and {number}?", f"It is {2 * number}\n#### {2 * number}") for number in range(20)]
    (folder / "math.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    (folder / "code.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Print {q}", "completion": f"print({a!r})"}) + "\n" for q, a in pairs)
    )


def launch(name, stage, *flags):
    """A stage by its preset, smaller by flags on the launching line."""
    line = ["--report_to", "none", "--disable_tqdm", "true", "--dataloader_pin_memory", "false", *flags]
    script = importlib.import_module(STAGES[stage][0])
    script = script.train_grpo if stage == "rloo" else script
    script_args, args = parse_preset(PRESETS / name / f"{stage}.yaml", *line)
    script.main(script_args, args)
    return args


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-1.7b",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama-3.2-1b", "gemma-3-1b", "smollm3-3b")),
        "gemma-3-4b",
    ],
)
def test_all_stages_run_on_a_tiny_base_of_the_family(name, tmp_path, monkeypatch):
    wrapper = PaletteForCausalLM
    if name == "gemma-3-4b":  # reads images, of which its presets have none
        pytest.importorskip("torchvision")
        wrapper = PaletteForVision2Seq
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    save_tiny_base(name, tmp_path / "base")
    save_traces(tmp_path)
    sft_traces = ["--traces", "math.jsonl", "code.jsonl"]
    vae_traces = ["--traces", "math=math.jsonl", "code=code.jsonl"]
    launch(name, "vae", "--base", "base", *vae_traces, "--traces_per_source", "15", "--max_steps", "5")
    palette = wrapper.from_pretrained(f"runs/{name}/palette").palette
    assert {domain: entry["count"] for domain, entry in palette.domains.items()} == {"math": 15, "code": 15}
    assert palette.latent_dim == 64
    record = json.loads(Path(f"runs/{name}/palette/training.json").read_text())
    assert [traces["count"] for traces in record["traces"]] == [15, 15]

    small = ["--gradient_accumulation_steps", "2", "--max_steps", "2"]
    launch(name, "sft", *sft_traces, *small, "--max_length", "64", "--per_device_train_batch_size", "2")
    for stage in ("grpo", "rloo"):
        rollouts = ["--traces", "math.jsonl", "--steps_per_generation", "1", "--max_completion_length", "6"]
        launch(name, stage, *rollouts, *small, "--save_steps", "1")
        assert wrapper.from_pretrained(f"runs/{name}/{stage}").palette.domains.keys() == {"math", "code"}


def save_expressions(folder):
    """Rows of referring expressions, and their images, of two sizes."""
    (folder / "images").mkdir()
    rows = []
    for number in range(16):
        size = (84, 56) if number % 2 else (56, 112)
        Image.new("RGB", size, (15 * number, 90, 40)).save(folder / "images" / f"{number}.png")
        box = [number % 3, 2, 30 + number, 40]
        rows.append({"expression": f"thing {number}", "bbox_xyxy": box, "image": f"{number}.png"})
    (folder / "things.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", VISION_BASES)
def test_all_stages_run_on_a_tiny_base_that_reads_images(name, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    save_tiny_base(name, tmp_path / "base")
    save_expressions(tmp_path)
    images = ["--image_folder", "images", "--traces_per_source", "12"]
    vae = launch(name, "vae", "--base", "base", "--traces", "things=things.jsonl", *images, "--max_steps", "5")
    palette = PaletteForVision2Seq.from_pretrained(f"runs/{name}/palette")
    assert {domain: entry["count"] for domain, entry in palette.palette.domains.items()} == {"things": 12}
    assert (palette.palette.latent_dim, palette.config.decoder_type, vae.num_segments) == (1024, "gpt", 8)

    towers = {"palette": tower_of(palette)}
    small = ["--gradient_accumulation_steps", "2", "--max_steps", "2"]
    source = ["--traces", "things.jsonl", *images]
    launch(name, "sft", *source, *small, "--per_device_train_batch_size", "2", "--learning_rate", "0.01")
    towers["sft"] = tower_of(PaletteForVision2Seq.from_pretrained(f"runs/{name}/sft"))
    assert not torch.equal(towers["palette"], towers["sft"])  # images are read, and their tower is trained
    limit = yaml.safe_load((PRESETS / name / "vae.yaml").read_text())["max_pixels"]
    for stage in ("grpo", "rloo"):
        rollouts = ["--steps_per_generation", "1", "--max_completion_length", "6", "--save_steps", "1"]
        launch(name, stage, *source, *rollouts, *small)
        trained = PaletteForVision2Seq.from_pretrained(f"runs/{name}/{stage}")
        assert trained.palette.domains.keys() == {"things"}
        state = json.loads(Path(f"runs/{name}/{stage}/checkpoint-2/trainer_state.json").read_text())
        logged = {key for entry in state["log_history"] for key in entry}
        assert {"rewards/grounding_iou/mean", "rewards/grounding_format/mean", "grounding/unreadable"} <= logged
        # The limit that the first stage put into the processor is that of the last.
        assert AutoProcessor.from_pretrained(f"runs/{name}/{stage}").image_processor.size["longest_edge"] == limit


def tower_of(model):
    return model.model.visual.patch_embed.proj.weight.detach().clone()


def test_the_command_of_the_readme(tmp_path):
    save_tiny_base("qwen3-1.7b", tmp_path / "base")
    save_traces(tmp_path)
    preset = str(PRESETS / "qwen3-1.7b" / "vae.yaml")
    flags = ["--base", "base", "--traces", "math=math.jsonl", "--max_steps", "2", "--use_cpu", "true"]
    command = [sys.executable, str(ROOT / "examples" / "02_train_vae.py"), "--config", preset, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "runs/qwen3-1.7b/palette/palette.safetensors").exists()


# Estimates


def small_config(model_type, **settings):
    shape = {**TINY, "num_key_value_heads": 1, "attn_implementation": "eager", "tie_word_embeddings": True}
    return AutoConfig.for_model(model_type, **{**shape, **SPECIAL, **settings})


FAMILIES = pytest.mark.parametrize("model_type", ["qwen3", "llama", "gemma3_text", "smollm3"])


def counted_flops(config, checkpointing, backward):
    """PyTorch's counter on a step under TRL's LM head; attention in products that it knows (eager)."""
    model = empty_model(config).train()
    add_fused_lm_head(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, 250, (2, 33))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@FAMILIES
def test_operations_are_those_that_pytorch_counts(model_type):
    config = small_config(model_type)
    assert counted_flops(config, False, backward=False) == compute_time.forward_flops(config, 2, 33, 64)
    setup = TrainingSetup(2, 33, 1, 1, True, False, 1, "single")
    head = 2 * count_parts(config).head
    expected = compute_time.training_flops(config, setup) - 4 * head * 2  # the last token of a row is not scored
    # The two products of the head's backward are in-place additions, which the counter does not know.
    assert counted_flops(config, False, backward=True) + 2 * head * 64 == expected
    setup.checkpointing = True
    expected = compute_time.training_flops(config, setup) - 4 * head * 2
    assert 0.94 < (counted_flops(config, True, backward=True) + 2 * head * 64) / expected <= 1


def tower_model(name, **vision):
    """A tiny model of the preset's family; sizes that differ, so that none stands in for another."""
    config = tiny_config(name)
    for key, value in {"hidden_size": 32, "intermediate_size": 40, **vision}.items():
        setattr(config.vision_config, key, value)
    config._attn_implementation = "eager"  # in products that PyTorch's counter knows
    return empty_model(config).train()


def image_inputs(config, rows, columns, count=1):
    """Pixels of images of so many patches, and a row for each of its tokens and twelve more."""
    merged = rows * columns // config.vision_config.spatial_merge_size**2
    ids = torch.randint(0, 250, (count, merged + 12))
    ids[:, 4 : 4 + merged] = config.image_token_id
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(count * rows * columns, vision_tower.pixel_bytes(config) // 4),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * count),
    }


@pytest.mark.parametrize("name", VISION_BASES)
@pytest.mark.parametrize("count", [1, 2])
def test_operations_on_images_are_those_that_pytorch_counts(name, count):
    """Of a step; 16 x 24 patches are six of Qwen2.5-VL's windows."""
    model = tower_model(name)
    config, patches = model.config, 16 * 24
    inputs = image_inputs(config, 16, 24, count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    length = inputs["input_ids"].shape[1]
    text = compute_time.forward_flops(config, count, length, count)
    assert counter.get_total_flops() == text + count * vision_tower.tower_flops(config, patches)
    one = TrainingSetup(2, length, 1, 1, True, True, 1, "single", patches=patches)
    none = TrainingSetup(2, length, 1, 1, True, True, 1, "single")
    added = compute_time.training_flops(config, one) - compute_time.training_flops(config, none)
    assert added == 2 * 4 * vision_tower.tower_flops(config, patches)


@pytest.mark.parametrize("name", VISION_BASES)
@pytest.mark.parametrize("bf16", [False, True])
def test_what_a_tower_keeps_is_what_a_whole_one_keeps(name, bf16):
    """Counted on all blocks at once, of an image of another size."""
    model = tower_model(name, depth=4)
    tower, patches = model.model.visual, 16 * 24
    tower.set_attn_implementation("sdpa")
    mergers = [0] if name == "qwen3-vl-4b" else []
    parameters = {parameter.data_ptr() for parameter in tower.parameters()}
    saved = {}

    def note(tensor):
        if tensor.data_ptr() not in parameters:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    inputs = image_inputs(model.config, 16, 24)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        tower(inputs["pixel_values"], inputs["image_grid_thw"])
    assert getattr(model.config.vision_config, "deepstack_visual_indexes", []) == mergers
    patch = vision_tower.tower_memory(model.config, bf16)
    products = [m for m in tower.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d))]
    copies = 2 * sum(p.numel() for module in products for p in module.parameters()) if bf16 else 0
    expected = patches * (4 * patch.saved + patch.outside) + copies
    assert sum(storage.nbytes() for storage in saved.values()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", VISION_BASES)
def test_largest_image_is_the_processors(name):
    pytest.importorskip("torchvision")
    path = PRESETS / name / "vae.yaml"
    limit, config = parse_preset(path)[0].max_pixels, BASES[name].build_config()
    processor = tiny_processor(name)
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": limit}
    image, sizes = image_of(path), []
    for size in ((640, 480), (480, 640), (640, 640), (1000, 700), (3000, 2000), (1024, 512), (896, 448)):
        fields = processor(images=[Image.new("RGB", size)], text=["<|image_pad|>"], return_tensors="pt")
        patches, values = fields["pixel_values"].shape
        assert 4 * values == vision_tower.pixel_bytes(config)
        tokens = int((fields["input_ids"] == processor.image_token_id).sum())
        assert patches == tokens * image.patches // image.tokens
        sizes.append(tokens)
    assert max(sizes) == image.tokens == 512
    assert sizes[0] < 400  # most images of RefCOCO are read in their own size


@FAMILIES
@pytest.mark.parametrize("bf16", [False, True])
def test_cache_is_the_size_of_a_real_one(model_type, bf16):
    config = small_config(model_type, num_hidden_layers=7)
    if model_type == "gemma3_text":
        config.sliding_window = 16
    model = empty_model(config).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = model(input_ids=torch.zeros(3, 40, dtype=torch.int64), use_cache=True)
    cache = outputs["cache" if "cache" in outputs else "past_key_values"]
    assert cache_bytes(config, 3, 40, bf16) == sum(
        t.nbytes for layer in cache.layers for t in (layer.keys, layer.values)
    )


def test_cache_of_many_layers_is_the_sum_over_their_pattern():
    config = small_config("gemma3_text", num_hidden_layers=26)
    config.sliding_window = 16
    full, sliding = config.layer_types.count("full_attention"), config.layer_types.count("sliding_attention")
    assert (full, sliding) == (4, 22)
    assert cache_bytes(config, 1, 40, False) == 2 * 4 * config.head_dim * (full * 40 + sliding * 15)


def test_what_a_layer_keeps_grows_with_its_rows_and_not_with_the_depth():
    config = small_config("qwen3")
    two, four, eight = (layer_memory(config, batch, 32, False).saved for batch in (2, 4, 8))
    assert eight - four == 2 * (four - two) > 0
    deeper = small_config("qwen3", num_hidden_layers=9)
    assert layer_memory(deeper, 2, 32, False).saved == two


def test_bytes_of_the_state_by_hand():
    """0.6B parameters: 2.2 GiB in float32, twice that for AdamW; an eighth under FSDP2."""
    config = BASES["qwen3-0.6b"].build_config()
    one = memory.training_memory(config, TrainingSetup(1, 32, 1, 1, True, True, 1, "single"))
    gib = 596_049_920 * 4 / 2**30
    assert one["weights"] == one["gradients"] == pytest.approx(gib)
    assert one["optimizer"] == pytest.approx(2 * gib)
    sharded = memory.training_memory(config, TrainingSetup(1, 32, 1, 1, True, True, 8, "fsdp2"))
    for part in ("weights", "gradients", "optimizer"):
        assert sharded[part] == pytest.approx(one[part] / 8)
    referenced = memory.training_memory(config, TrainingSetup(1, 32, 1, 1, True, True, 1, "single", reference=True))
    assert referenced["peak"] - one["peak"] == pytest.approx(gib)


def test_constants_are_those_of_trl():
    from trl.kernels import chunked_logprob

    assert (memory.HEAD_TOKENS, memory.HEAD_ROWS) == (
        chunked_logprob.TOKEN_CHUNK_SIZE,
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
    )
    for hardware, device in (("h100", "NVIDIA H100 80GB HBM3"), ("a100", "NVIDIA A100-SXM4-80GB")):
        assert compute_time.HARDWARE[hardware].peak == get_peak_flops(device, "bfloat16")


def test_peaks_of_real_trainings_are_near_the_estimates():
    """Recorded by examples/benchmarks/preset_memory.py, against what is estimated now."""
    measured = {}
    for file in ("preset_memory.json", "preset_memory_vision.json"):
        measured |= json.loads((ROOT / "examples/benchmarks" / file).read_text())["cases"]
    assert measured.keys() == preset_memory.SETTINGS.keys() and len(measured) == 6 + 3
    for case, recorded in measured.items():
        estimated = preset_memory.estimated_gib(case)
        assert 0.85 < recorded["measured_gib"] / estimated < 1.15, (case, recorded, estimated)
        assert recorded["estimated_gib"] == pytest.approx(estimated, rel=0.01), case


@pytest.mark.slow
def test_a_peak_measured_now(tmp_path):
    script = ROOT / "examples/benchmarks/preset_memory.py"
    output = tmp_path / "result.json"
    command = [sys.executable, str(script), "--cases", "sft", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert 0.85 < json.loads(output.read_text())["cases"]["sft"]["measured_over_estimated"] < 1.15


def test_rollouts_are_sampled_in_mixed_precision(tmp_path):
    """Why weights are read, copied and read again at every token: autocast keeps no copy beyond a forward."""
    model, seen = chat_palette_model(), []
    model.model.layers[0].self_attn.v_proj.register_forward_hook(
        lambda module, inputs, output: seen.append((module.weight.dtype, output.dtype, torch.is_grad_enabled()))
    )
    common = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "max_steps": 1, "bf16": True}
    shape = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4}
    args = PaletteGRPOConfig(**common, **shape, latent_sensitivity_steps=0)
    rows = Dataset.from_list([{"prompt": "abc"}] * 4)
    PaletteGRPOTrainer(
        model, lambda completions, **columns: [1.0] * len(completions), args, train_dataset=rows
    ).train()
    assert set(seen) == {(torch.float32, torch.bfloat16, False), (torch.float32, torch.bfloat16, True)}


@EVERY_BASE
def test_palettes_are_small(name):
    palette = palette_of(PRESETS / name / "grpo.yaml")
    assert isinstance(palette, PaletteVAE)
    assert palette_bytes(palette) < 20 * 2**20


def test_devices_keep_the_global_batch():
    _, args = parse_preset(PRESETS / "qwen3-8b" / "grpo.yaml")
    one, eight = setup_of(args, 256), setup_of(args, 256, 8, "fsdp2")
    assert one.batch * one.accumulation == 8 * eight.batch * eight.accumulation == 128
    assert (one.rollouts, eight.rollouts) == (32, 16)
    assert one.length == 256 + 8 + 1024


def test_images_are_in_the_length_the_tower_and_the_state():
    path = PRESETS / "qwen3-vl-4b" / "grpo.yaml"
    config, (_, args), image = BASES["qwen3-vl-4b"].build_config(), parse_preset(path), image_of(path)
    with_images, without = setup_of(args, 256, image=image), setup_of(args, 256)
    assert with_images.length - without.length == image.tokens == 512
    assert (with_images.patches, with_images.rollouts) == (2048, 32)
    gib = [memory.training_memory(config, setup) for setup in (with_images, without)]
    assert gib[0]["weights"] == gib[1]["weights"] == pytest.approx(4_437_815_808 * 4 / 2**30)
    assert gib[0]["gradients"] == gib[0]["weights"]  # the tower's too
    assert gib[1]["gradients"] == pytest.approx(4_022_468_096 * 4 / 2**30)
    pixels = 32 * 2048 * (3 * 2 * 16 * 16) * 4  # of 32 rollouts, in float32
    assert (gib[0]["images"], gib[1]["images"]) == (pixels / 2**30, 0)
    times = [
        compute_time.step_seconds(config, setup, compute_time.HARDWARE["h100"]) for setup in (with_images, without)
    ]
    assert all(times[0][part] > times[1][part] for part in ("training", "sampling"))
    _, sft = parse_preset(PRESETS / "qwen3-vl-4b" / "sft.yaml", "--max_length", "300")
    with pytest.raises(ValueError, match="`max_length` is 300, but an image takes up to 512 tokens"):
        setup_of(sft, 256, image=image)


def test_vllm_reserves_its_share_and_reads_fewer_bytes():
    path = PRESETS / "qwen3-1.7b" / "grpo.yaml"
    config = BASES["qwen3-1.7b"].build_config()
    setups = [
        setup_of(parse_preset(path, "--use_vllm", on, "--vllm_mode", "colocate")[1], 256) for on in ("no", "yes")
    ]
    without, with_vllm = (memory.training_memory(config, setup, device_gib=80) for setup in setups)
    assert with_vllm["vllm"] == pytest.approx(0.3 * 80)
    assert with_vllm["training"] == pytest.approx(without["training"] + 24)
    assert with_vllm["cache"] == 0 < without["cache"]
    slow, fast = (compute_time.step_seconds(config, setup, compute_time.HARDWARE["h100"]) for setup in setups)
    assert fast["sampling"] < slow["sampling"] / 2
    # One forward more, to correct for vLLM's log-probabilities: a quarter of a step with checkpointing.
    assert fast["training"] == pytest.approx(slow["training"] * 5 / 4)


def test_time_of_sampling_by_hand():
    """Bandwidth alone: the bytes of weights and cache, at each of the completion's tokens."""
    config, hardware = BASES["qwen3-0.6b"].build_config(), compute_time.HARDWARE["h100"]
    setup = TrainingSetup(8, 300, 1, 1, True, True, 1, "single", rollouts=8, prompt_length=100)
    cache_of_a_token = 28 * 8 * 128 * (4 + 2)  # keys in float32 (Qwen3 norms them), values in bfloat16
    moved = 596_049_920 * 8 + 8 * 200 * cache_of_a_token * 3  # 200 tokens on average
    sampling = 200 * moved / (3.35e12 * 0.6)
    prefill = compute_time.forward_flops(config, 8, 100, 8) / (989e12 * 0.4)
    assert compute_time.step_seconds(config, setup, hardware)["sampling"] == pytest.approx(sampling + prefill)


@pytest.mark.parametrize(
    ("flags", "devices", "strategy", "message"),
    [
        ((), 3, "ddp", "`gradient_accumulation_steps` is 16, which 3 devices cannot share"),
        ((), 8, "single", "`strategy` must be 'single' for one device"),
        (("--optim", "adafactor"), 1, "single", "`optim` is .*; the estimates know PyTorch's AdamW"),
        (("--max_steps", "-1"), 1, "single", "`max_steps` must be set"),
    ],
)
def test_what_the_estimates_know_nothing_of_is_refused(flags, devices, strategy, message):
    _, args = parse_preset(PRESETS / "qwen3-1.7b" / "grpo.yaml", *flags)
    with pytest.raises(ValueError, match=message):
        setup_of(args, 256, devices, strategy)


def test_estimate_command(capsys):
    preset = ["--config", str(PRESETS / "qwen3-8b" / "grpo.yaml")]
    estimate.main(preset.copy())
    printed = capsys.readouterr().out
    assert "Qwen/Qwen3-8B-Base on 1 x H100 SXM 80 GB" in printed and "This does not fit" in printed
    estimate.main([*preset, "--devices", "8", "--strategy", "fsdp2", "--max_completion_length", "512"])
    assert "This does not fit" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="--number_of_devices"):
        estimate.main([*preset, "--number_of_devices", "8"])
    with pytest.raises(SystemExit, match="Name a preset"):
        estimate.main([])


def test_tables_are_up_to_date():
    """`python hub_configs/write_presets.py` writes them anew."""
    text = (PRESETS / "README.md").read_text()
    assert readme_tables.with_tables(text) == text


def test_configs_are_configs():
    assert all(isinstance(base.build_config(), PreTrainedConfig) for base in BASES.values())
