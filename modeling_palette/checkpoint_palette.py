"""What a palette checkpoint is made of: `palette.safetensors`, the code that reads it, and the trainers beside it."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from .configuration_palette import PaletteConfig
from .palette_vae import PaletteVAE

PALETTE_FILE = "palette.safetensors"
# Arguments of `from_pretrained` that say where a file is, as `transformers.utils.cached_file` takes them.
LOCATION_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "local_files_only",
    "subfolder",
)
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bool: "BOOL"}


def palette_from_config(config: PaletteConfig, hidden_size: int) -> PaletteVAE:
    """A fresh palette with the sizes and domains of a config."""
    palette = PaletteVAE(
        hidden_size,
        latent_dim=cast(int, config.latent_dim),
        hidden_sizes=tuple(config.encoder_hidden_sizes),
        decoder_type=config.decoder_type,
        num_domains=config.num_domain_sources,
    )
    palette.domains = {name: dict(entry) for name, entry in config.domains.items()}
    return palette


def save_palette(palette: PaletteVAE, folder: str | Path) -> None:
    """Write `palette.safetensors`."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in palette.state_dict().items()}
    save_file(tensors, Path(folder) / PALETTE_FILE, metadata={"format": "pt"})


def load_palette(
    name_or_path: str, config: PaletteConfig | None = None, **location: Any
) -> tuple[PaletteVAE, PaletteConfig]:
    """
    Load the palette of a palette-only checkpoint.

    Names, shapes and dtypes are compared with the config before any tensor is read.

    Args:
        name_or_path (`str`): Folder or Hub id.
        config ([`PaletteConfig`], *optional*): Its config, where it is loaded already.
        **location: `revision`, `token`, `cache_dir`, ... as `from_pretrained` takes them.

    Returns:
        The palette and its config.

    Raises:
        OSError: if the checkpoint has no `palette.safetensors`.
        ValueError: if that file is damaged, does not fit the config, or holds values that are not finite.
    """
    if config is None:
        config = PaletteConfig.from_pretrained(name_or_path, **location)
    if not config.palette_only:
        raise ValueError(
            f"{name_or_path!r} is a full checkpoint, and a palette is loaded from a palette-only one. Write one with "
            "`save_pretrained(folder, palette_only=True)`, or load the whole model with `from_pretrained`."
        )
    path = cached_file(name_or_path, PALETTE_FILE, **location)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if "embedding_mean" not in shapes:
                raise ValueError(f"{PALETTE_FILE} of {name_or_path!r} holds no palette: `embedding_mean` is missing.")
            with torch.device("meta"):
                expected = palette_from_config(config, shapes["embedding_mean"].get_shape()[0]).state_dict()
            for name in sorted(expected.keys() | shapes.keys()):
                found = (tuple(shapes[name].get_shape()), shapes[name].get_dtype()) if name in shapes else "nothing"
                wanted = (
                    (tuple(expected[name].shape), _SAFETENSORS_DTYPES[expected[name].dtype])
                    if name in expected
                    else "nothing"
                )
                if found != wanted:
                    raise ValueError(
                        f"{PALETTE_FILE} of {name_or_path!r} does not fit its config: `{name}` is {found}, expected "
                        f"{wanted}. Save the palette again with `save_pretrained(folder, palette_only=True)`."
                    )
            tensors = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise ValueError(
            f"{PALETTE_FILE} of {name_or_path!r} is damaged: {error}. Download or save it again."
        ) from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{PALETTE_FILE} of {name_or_path!r} holds NaN or infinity in `{name}`.")
    palette = palette_from_config(config, tensors["embedding_mean"].shape[0])
    palette.load_state_dict(tensors)
    return palette, config


def copy_code(folder: str | Path, loaded_from: str | None) -> None:
    """
    Put the code of the palette (flat, at the root) and of the trainers (in `trainers/`) into a checkpoint.

    Args:
        folder (`str` or `Path`): The checkpoint.
        loaded_from (`str`, *optional*): The folder that the model was loaded from; it has the trainers where the
            package is not installed.
    """
    folder, here = Path(folder), Path(__file__).resolve().parent
    _copy_modules(here, folder)
    for candidate in (here.parent / "trainers", here / "trainers", Path(loaded_from or "") / "trainers"):
        if (candidate / "palette_sft_trainer.py").is_file():
            (folder / "trainers").mkdir(exist_ok=True)
            _copy_modules(candidate, folder / "trainers")
            break


def _copy_modules(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    for module in sorted(source.glob("*.py")):
        if module.name != "__init__.py":
            shutil.copyfile(module, target / module.name)
