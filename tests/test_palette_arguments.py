"""The palette arguments in TRL's configs: defaults, command line, YAML, and refusals by message."""

import json

import pytest
from trl import GRPOConfig, RLOOConfig, SFTConfig, TrlParser

from reasoning_palette.trainers.palette_grpo_trainer import PaletteGRPOConfig
from reasoning_palette.trainers.palette_rloo_trainer import PaletteRLOOConfig
from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig

COMMON = {"use_cpu": True, "bf16": False, "report_to": "none"}
ALL_CONFIGS = [PaletteSFTConfig, PaletteGRPOConfig, PaletteRLOOConfig]


@pytest.mark.parametrize(
    ("config", "stock", "num_prefix_tokens"),
    [(PaletteSFTConfig, SFTConfig, 1), (PaletteGRPOConfig, GRPOConfig, 8), (PaletteRLOOConfig, RLOOConfig, 8)],
)
def test_defaults_are_the_papers_and_the_rest_is_trls(tmp_path, config, stock, num_prefix_tokens):
    args, reference = config(str(tmp_path), **COMMON), stock(str(tmp_path), **COMMON)
    assert isinstance(args, stock)
    assert args.num_prefix_tokens == num_prefix_tokens
    assert (args.latent_domain, args.latent_tile, args.latent_seed, args.latent_eval) == (None, False, None, False)
    changed = {name for name, value in reference.to_dict().items() if args.to_dict()[name] != value}
    assert changed - {"max_steps", "logging_dir"} == set()
    if stock is not SFTConfig:
        assert args.latent_schedule == "two-phase"
        assert args.latent_schedule_end is None
        assert args.latent_fraction == 1.0
        assert args.latent_per == "rollout"
        assert args.max_steps == -1


def test_sft_takes_ten_steps_unless_told_otherwise(tmp_path):
    assert PaletteSFTConfig(str(tmp_path), **COMMON).max_steps == 10
    assert PaletteSFTConfig(str(tmp_path), max_steps=60, **COMMON).max_steps == 60
    epochs = PaletteSFTConfig(str(tmp_path), num_train_epochs=3.0, **COMMON)
    assert (epochs.max_steps, epochs.num_train_epochs) == (-1, 3.0)


def test_sft_config_survives_a_round_trip_through_its_dictionary(tmp_path):
    for steps in ({}, {"num_train_epochs": 2.0}, {"max_steps": 7}):
        args = PaletteSFTConfig(str(tmp_path), **steps, **COMMON)
        again = PaletteSFTConfig(**{**args.to_dict(), "hub_token": None})
        assert (again.max_steps, again.num_train_epochs) == (args.max_steps, args.num_train_epochs)


@pytest.mark.parametrize("config", ALL_CONFIGS)
def test_command_line(tmp_path, config):
    line = f"--output_dir {tmp_path} --use_cpu True --bf16 False --num_prefix_tokens 4 --latent_tile --latent_seed 3"
    (args,) = TrlParser(config).parse_args_and_config([*line.split(), "--latent_domain", '{"math": 0.7, "code": 0.3}'])
    assert (args.num_prefix_tokens, args.latent_tile, args.latent_seed) == (4, True, 3)
    assert args.latent_domain == {"math": 0.7, "code": 0.3}
    (args,) = TrlParser(config).parse_args_and_config([*line.split(), "--latent_domain", "math"])
    assert args.latent_domain == "math"


def test_command_line_of_schedule_and_steps(tmp_path):
    common = f"--output_dir {tmp_path} --use_cpu True --bf16 False".split()
    line = "--latent_schedule cosine-decay --latent_schedule_end 0.8 --latent_fraction 0.5 --latent_per prompt"
    (args,) = TrlParser(PaletteGRPOConfig).parse_args_and_config([*common, *line.split()])
    assert args.build_latent_schedule().rho(0.4) == pytest.approx(0.25)
    assert args.latent_per == "prompt"
    (args,) = TrlParser(PaletteSFTConfig).parse_args_and_config(common)
    assert args.max_steps == 10
    (args,) = TrlParser(PaletteSFTConfig).parse_args_and_config([*common, "--num_train_epochs", "2"])
    assert (args.max_steps, args.num_train_epochs) == (-1, 2.0)


@pytest.mark.parametrize("config", ALL_CONFIGS)
def test_yaml(tmp_path, config):
    path = tmp_path / "config.yaml"
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "latent_domain": {"math": 2, "code": 1}}
    path.write_text(json.dumps(fields))  # JSON is YAML
    (args,) = TrlParser(config).parse_args_and_config(["--config", str(path)])
    assert args.latent_domain == {"math": 2, "code": 1}


@pytest.mark.parametrize("config", ALL_CONFIGS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prefix_tokens": -1}, "`num_prefix_tokens` must be at least 0, got -1"),
        ({"latent_seed": -5}, "`latent_seed` must be at least 0, or None for `seed`, got -5"),
        ({"latent_domain": ["math"]}, r"`latent_domain` must be None \(the prior\), the name of a domain.*\['math'\]"),
        ({"latent_domain": ""}, "`latent_domain` must be None"),
        ({"latent_domain": {"math": -1.0}}, "gives domain 'math' the weight -1.0"),
        ({"latent_domain": {"math": float("nan")}}, "the weight nan"),
        ({"latent_domain": {"math": 0.0}}, "has no positive weight"),
        ({"latent_domain": {}}, "has no positive weight"),
    ],
)
def test_bad_values_are_refused(tmp_path, config, arguments, message):
    with pytest.raises(ValueError, match=message):
        config(str(tmp_path), **arguments, **COMMON)


@pytest.mark.parametrize("config", [PaletteGRPOConfig, PaletteRLOOConfig])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_schedule": "linear"}, "`latent_schedule` must be one of"),
        ({"latent_schedule": "constant", "latent_schedule_end": 0.5}, "`latent_schedule_end` is 0.5"),
        ({"latent_fraction": 2.0}, "`latent_fraction` must be in"),
        ({"latent_per": "group"}, "`latent_per` must be 'rollout' or 'prompt', got 'group'"),
    ],
)
def test_bad_schedules_are_refused(tmp_path, config, arguments, message):
    with pytest.raises(ValueError, match=message):
        config(str(tmp_path), **arguments, **COMMON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_pairing": "encoder"}, "`latent_pairing` must be 'prior' or 'posterior', got 'encoder'"),
        ({"latent_pairing": "posterior", "latent_domain": "math"}, "takes every latent from its own example"),
    ],
)
def test_bad_pairings_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        PaletteSFTConfig(str(tmp_path), **arguments, **COMMON)
