"""Presets as the numbered examples read them."""

import importlib
import sys
from pathlib import Path
from typing import Any

from estimates.base_facts import BaseFacts, load_bases
from estimates.vision_tower import ImageSize, largest_image
from trl import TrlParser

from reasoning_palette.modeling_palette import PaletteVAE
from reasoning_palette.trainers import (
    PaletteGRPOConfig,
    PaletteRLOOConfig,
    PaletteSFTConfig,
    PaletteVAEConfig,
)

FOLDER = Path(__file__).parent.parent
# Stage: the script that is launched with it, its arguments' class, and the training arguments' class.
STAGES = {
    "vae": ("02_train_vae", "VAEArguments", PaletteVAEConfig),
    "sft": ("04_train_sft", "SFTArguments", PaletteSFTConfig),
    "grpo": ("05_train_grpo", "GRPOArguments", PaletteGRPOConfig),
    "rloo": ("05_train_rloo", "GRPOArguments", PaletteRLOOConfig),
}


def parse_preset(path: str | Path, *flags: str, own: tuple[type, ...] = ()) -> tuple[Any, ...]:
    """
    A preset's arguments, of the classes `own`, of the script and of the trainer. Unknown keys and flags are refused.
    """
    script, script_class, config_class = STAGES[Path(path).stem]
    if str(FOLDER.parent / "examples") not in sys.path:
        sys.path.insert(0, str(FOLDER.parent / "examples"))
    parser = TrlParser((*own, getattr(importlib.import_module(script), script_class), config_class))
    # Only read here: on the machine that reads, bfloat16 and devices need not be there.
    return parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true", *flags])


def base_of(path: str | Path) -> BaseFacts:
    """The base of a preset: its folder is named after it."""
    name, bases = Path(path).resolve().parent.name, load_bases()
    if name not in bases:
        raise ValueError(f"`--config` must be in a folder named after one of {list(bases)}, got {str(path)!r}.")
    return bases[name]


def palette_of(path: str | Path) -> PaletteVAE:
    """An untrained palette of the size that the base's `vae.yaml` asks for."""
    _, args = parse_preset(Path(path).parent / "vae.yaml")
    config = base_of(path).build_config().get_text_config(decoder=True)
    return PaletteVAE(
        config.hidden_size,
        args.latent_dim,
        args.hidden_sizes,
        args.decoder_type,
        num_slots=args.num_slots,
        num_decoder_layers=args.num_decoder_layers,
        num_segments=args.num_segments,
    )


def image_of(path: str | Path) -> ImageSize | None:
    """The largest image of a preset, by the limit that its `vae.yaml` puts into the processor; None for text."""
    script_args, _ = parse_preset(Path(path).parent / "vae.yaml")
    base = base_of(path)
    return largest_image(base.build_config(), script_args.max_pixels) if base.vision else None


def palette_bytes(palette: PaletteVAE) -> int:
    """Bytes of a palette's buffers."""
    return sum(buffer.nbytes for buffer in palette.buffers())
