"""The palette of a checkpoint: what is written, and what is checked before it is read."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from .checked_tensors import PALETTE_FILE, check_bytes, check_finite, checked_tensors, palette_from_config
from .configuration_palette import PaletteConfig
from .palette_vae import PaletteVAE

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


class CheckpointLocation(dict[str, Any]):
    """Where a model was loaded from, beside its name. Copies and pickles of it lack the token."""

    def __reduce__(self) -> Any:
        return CheckpointLocation, ({name: value for name, value in self.items() if name != "token"},)


def save_palette(palette: PaletteVAE, folder: str | Path) -> None:
    """
    Write `palette.safetensors`.

    Raises:
        ValueError: if it would be too large to be read again.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in palette.state_dict().items()}
    check_bytes(tensors.values(), "This palette")
    save_file(tensors, Path(folder) / PALETTE_FILE, metadata={"format": "pt"})


def load_palette(
    name_or_path: str, config: PaletteConfig | None = None, **location: Any
) -> tuple[PaletteVAE, PaletteConfig]:
    """
    Load the palette of a palette-only checkpoint; see [`read_palette`].

    Args:
        name_or_path (`str`): Folder or Hub id.
        config ([`PaletteConfig`], *optional*): Its config, where it is loaded already.
        **location: `revision`, `token`, `cache_dir`, ... as `from_pretrained` takes them.

    Returns:
        The palette and its config.

    Raises:
        OSError: if the checkpoint has no `palette.safetensors`.
        ValueError: if it is a full checkpoint, and as [`read_palette`] does.
    """
    if config is None:
        config = PaletteConfig.from_pretrained(name_or_path, **location)
    if not config.palette_only:
        raise ValueError(
            f"{name_or_path!r} is a full checkpoint, and a palette is loaded from a palette-only one. Write one with "
            "`save_pretrained(folder, palette_only=True)`, or load the whole model with `from_pretrained`."
        )
    return read_palette(name_or_path, config, **location), config


def read_palette(name_or_path: str, config: PaletteConfig, **location: Any) -> PaletteVAE:
    """
    Read the palette out of a checkpoint of either kind; the base's weights are not read.

    Names, shapes and dtypes are compared with the config before any tensor is read.

    Args:
        name_or_path (`str`): Folder or Hub id.
        config ([`PaletteConfig`]): Its config.
        **location: `revision`, `token`, `cache_dir`, ... as `from_pretrained` takes them.

    Returns:
        [`PaletteVAE`].

    Raises:
        OSError: if the checkpoint has no file that holds the palette, or if its download is broken off.
        ValueError: if that file is damaged, does not fit the config, or holds values that are not finite.
    """
    with checked_tensors(name_or_path, config, **location) as slices:
        tensors = {name: _read(values) for name, values in slices.items()}
    check_finite(tensors.items(), name_or_path)
    palette = palette_from_config(config, tensors["embedding_mean"].shape[0])
    palette.load_state_dict(tensors)
    return palette


def _read(values: Any) -> torch.Tensor:
    # A palette without domains has tensors without rows, which safetensors 0.8 cannot slice.
    shape = values.get_shape()
    return torch.empty(shape) if 0 in shape else torch.as_tensor(values[...])


def loaded_commit(name_or_path: str | Path, **location: Any) -> str | None:
    """
    The commit that a repository was just loaded at, as the cache has it; `None` for a folder. No request is made.

    Args:
        name_or_path (`str` or `Path`): Folder or Hub id.
        **location: `revision`, `cache_dir`, `subfolder`, ... as `from_pretrained` was given them.
    """
    if Path(name_or_path).is_dir():
        return None
    where = {name: location[name] for name in ("revision", "cache_dir") if location.get(name) is not None}
    config = "/".join(part for part in (location.get("subfolder"), CONFIG_NAME) if part)
    found = try_to_load_from_cache(str(name_or_path), config, **where)
    return extract_commit_hash(found, None) if isinstance(found, str) else None


def latent_fingerprint(palette: PaletteVAE, config: PaletteConfig) -> str:
    """
    A digest of all that decides what a latent id means: models with the same one read the same rows for the same ids.

    Args:
        palette ([`PaletteVAE`]): A palette.
        config ([`PaletteConfig`]): The config that its ids are laid out by.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(repr((config.latent_codes, config.latent_seed)).encode(), digest_size=16)
    for name, tensor in sorted(palette.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
