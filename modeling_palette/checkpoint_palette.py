"""The palette of a checkpoint: what is written, and what is checked before it is read."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

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


class CheckpointLocation(dict[str, Any]):
    """Where a model was loaded from, beside its name. Copies and pickles of it lack the token."""

    def __reduce__(self) -> Any:
        return CheckpointLocation, ({name: value for name, value in self.items() if name != "token"},)


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
    prefix = "" if config.palette_only else "palette."
    names = _palette_files(name_or_path, config, location)
    files = ", ".join(names)
    try:
        with ExitStack() as stack:
            shapes: dict[str, Any] = {}
            for name in names:
                path = _fetched(name_or_path, name, location)
                file = stack.enter_context(safe_open(path, framework="pt"))
                names_in_file = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (no mapping)
                shapes |= {key.removeprefix(prefix): file.get_slice(key) for key in names_in_file}
            if "embedding_mean" not in shapes:
                raise ValueError(f"{files} of {name_or_path!r} holds no palette: `embedding_mean` is missing.")
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
                        f"{files} of {name_or_path!r} does not fit its config: `{name}` is {found}, expected "
                        f"{wanted}. Save it again with `save_pretrained(folder)`, with `palette_only=True` if that is "
                        "what it was."
                    )
            tensors = {name: tensor_slice[...] for name, tensor_slice in shapes.items()}
    except SafetensorError as error:
        raise ValueError(f"{files} of {name_or_path!r} is damaged: {error}. Download or save it again.") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{files} of {name_or_path!r} holds NaN or infinity in `{name}`.")
    palette = palette_from_config(config, tensors["embedding_mean"].shape[0])
    palette.load_state_dict(tensors)
    return palette


def _fetched(name_or_path: str, name: str, location: dict[str, Any]) -> str | None:
    try:
        return cached_file(name_or_path, name, **location)
    except (OSError, ValueError):
        raise  # which say what is wrong
    except Exception as error:  # of the HTTP client, whose library depends on the version of huggingface_hub
        raise OSError(
            f"{name} of {name_or_path!r} could not be downloaded ({type(error).__name__}: {error}). What has arrived "
            "is not used; try again."
        ) from error


def _palette_files(name_or_path: str, config: PaletteConfig, location: dict[str, Any]) -> list[str]:
    """Names of the files that hold the palette's tensors."""
    if config.palette_only:
        return [PALETTE_FILE]
    index = cached_file(name_or_path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **location)
    if index is None:
        return [SAFE_WEIGHTS_NAME]
    weight_map = json.loads(Path(index).read_text())["weight_map"]
    return sorted({file for name, file in weight_map.items() if name.startswith("palette.")})


def loaded_commit(name_or_path: str | Path, **location: Any) -> str | None:
    """
    The commit that a repository was just loaded at, as the cache has it; `None` for a folder. No request is made.

    Args:
        name_or_path (`str` or `Path`): Folder or Hub id.
        **location: `revision`, `cache_dir`, ... as `from_pretrained` was given them.
    """
    if Path(name_or_path).is_dir():
        return None
    where = {name: location[name] for name in ("revision", "cache_dir") if location.get(name) is not None}
    found = try_to_load_from_cache(str(name_or_path), CONFIG_NAME, **where)
    return Path(found).parent.name if isinstance(found, str) else None


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
