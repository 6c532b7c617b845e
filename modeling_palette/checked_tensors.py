"""The palette's tensors in a checkpoint: found, and compared with its config, before any of them is read."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .checkpoint_guards import shards_of_index
from .configuration_palette import PaletteConfig
from .palette_vae import PaletteVAE

PALETTE_FILE = "palette.safetensors"
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bool: "BOOL"}
# A config can describe a palette of any size, and a sparse file can hold it. The largest that a trainer here makes
# have some tens of MiB.
MAX_PALETTE_BYTES = 4 << 30
# Headers are read into memory before anything in them can be checked. 200 bytes name one tensor.
MAX_HEADER_BYTES = 16 << 20
MAX_HIDDEN_LAYERS = 256


def palette_from_config(config: PaletteConfig, hidden_size: int) -> PaletteVAE:
    """A fresh palette with the sizes and domains of a config."""
    palette = PaletteVAE(
        hidden_size,
        latent_dim=cast(int, config.latent_dim),
        hidden_sizes=tuple(config.encoder_hidden_sizes),
        decoder_type=config.decoder_type,
        num_domains=config.num_domain_sources,
        num_slots=config.num_slots,
        num_decoder_layers=config.num_decoder_layers,
        num_segments=config.num_segments,
    )
    palette.domains = {name: dict(entry) for name, entry in config.domains.items()}
    return palette


@contextmanager
def checked_tensors(
    name_or_path: str, config: PaletteConfig, variant: str | None = None, **location: Any
) -> Iterator[dict[str, Any]]:
    """
    Open the palette's tensors once their names, shapes and dtypes are known to fit the config; none is read.

    Args:
        name_or_path (`str`): Folder or Hub id.
        config ([`PaletteConfig`]): Its config.
        variant (`str`, *optional*): Variant of a full checkpoint's files.
        **location: `revision`, `token`, `cache_dir`, ... as `from_pretrained` takes them.

    Yields:
        `dict`: Name -> slice of the open file; numpy's.

    Raises:
        OSError, ValueError: as [`read_palette`] does.
    """
    prefix = "" if config.palette_only else "palette."
    paths = _palette_files(name_or_path, config, location, variant)
    files = ", ".join(paths)
    try:
        with ExitStack() as stack:
            opened: dict[str, Any] = {}
            for name, path in paths.items():
                _check_header_size(path, name, name_or_path)
                # torch's mapping is writable, so that the kernel may refuse it for its size before a name is looked at
                file = stack.enter_context(safe_open(path, framework="numpy"))
                names_in_file = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (no mapping)
                opened |= dict.fromkeys((key.removeprefix(prefix) for key in names_in_file), file)
            if "embedding_mean" not in opened:
                raise ValueError(f"{files} of {name_or_path!r} holds no palette: `embedding_mean` is missing.")
            width = opened["embedding_mean"].get_slice(f"{prefix}embedding_mean").get_shape()
            expected = _expected_tensors(config, width, name_or_path)
            slices = {}
            for name in sorted(expected.keys() | opened.keys()):
                found: Any = "nothing"
                wanted: Any = "nothing"
                if name in expected:
                    wanted = tuple(expected[name].shape), _SAFETENSORS_DTYPES[expected[name].dtype]
                if name in opened:
                    slices[name] = opened[name].get_slice(f"{prefix}{name}")
                    found = tuple(slices[name].get_shape()), slices[name].get_dtype()
                if found != wanted:
                    raise ValueError(
                        f"{files} of {name_or_path!r} does not fit its config: `{name}` is {found}, expected "
                        f"{wanted}. Save it again with `save_pretrained(folder)`, with `palette_only=True` if that is "
                        "what it was."
                    )
            yield slices
    except SafetensorError as error:
        raise ValueError(f"{files} of {name_or_path!r} is damaged: {error}. Download or save it again.") from error


def check_weights(name_or_path: str, config: PaletteConfig, variant: str | None = None, **location: Any) -> None:
    """
    Look at the weights of a full checkpoint before transformers reads them: it allocates what the config says.

    With `force_download` all of them are downloaded here, so that transformers need not do it a second time.

    Args:
        As [`checked_tensors`].

    Raises:
        OSError, ValueError: as [`read_palette`] does.
    """
    if config.latent_dim is None:
        _palette_files(name_or_path, config, location, variant)
    else:
        with checked_tensors(name_or_path, config, variant, **location):
            pass


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], name_or_path: str) -> None:
    """
    Raises:
        ValueError: for NaN and infinity in the palette of a checkpoint.
    """
    for name, tensor in tensors:
        if not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise ValueError(f"The palette of {name_or_path!r} holds NaN or infinity in `{name}`.")


def _expected_tensors(config: PaletteConfig, width: list[int], name_or_path: str) -> dict[str, torch.Tensor]:
    """The tensors that a config describes, without their memory."""
    num_layers = max(len(config.encoder_hidden_sizes), config.num_decoder_layers or 0)
    if num_layers > MAX_HIDDEN_LAYERS:  # each is a module, however small
        raise ValueError(
            f"The config of {name_or_path!r} describes a palette of {num_layers} layers; at most {MAX_HIDDEN_LAYERS} "
            "are read."
        )
    if len(width) != 1:
        raise ValueError(f"`embedding_mean` of {name_or_path!r} has shape {tuple(width)}, expected one dimension.")
    try:
        with torch.device("meta"):
            expected = palette_from_config(config, width[0]).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes whose product torch cannot count
        raise ValueError(
            f"The config of {name_or_path!r} describes no palette that could exist: latent_dim={config.latent_dim}, "
            f"encoder_hidden_sizes={config.encoder_hidden_sizes}."
        ) from error
    check_bytes(expected.values(), f"The palette that the config of {name_or_path!r} describes")
    return expected


def check_bytes(tensors: Iterable[torch.Tensor], what: str) -> None:
    """
    Raises:
        ValueError: for more than `MAX_PALETTE_BYTES`.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if num_bytes > MAX_PALETTE_BYTES:
        raise ValueError(
            f"{what} has {num_bytes / 2**30:,.1f} GiB; at most {MAX_PALETTE_BYTES / 2**30:g} GiB are read from a "
            "checkpoint. Lower `latent_dim` or `hidden_sizes`."
        )


def _check_header_size(path: str, name: str, name_or_path: str) -> None:
    with Path(path).open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise ValueError(
            f"{name} of {name_or_path!r} is damaged: it claims a header of {num_bytes:,} bytes, and at most "
            f"{MAX_HEADER_BYTES:,} are read. Download or save it again."
        )


def _fetched(name_or_path: str, name: str, location: dict[str, Any], may_be_missing: bool = False) -> Any:
    try:
        return cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=not may_be_missing, **location)
    except (OSError, ValueError):
        raise  # which say what is wrong
    except Exception as error:  # of the HTTP client, whose library depends on the version of huggingface_hub
        raise OSError(
            f"{name} of {name_or_path!r} could not be downloaded ({type(error).__name__}: {error}). What has arrived "
            "is not used; try again."
        ) from error


def _palette_files(
    name_or_path: str, config: PaletteConfig, location: dict[str, Any], variant: str | None = None
) -> dict[str, str]:
    """Name -> path of the files that hold the palette's tensors, looked for in transformers' order."""
    if config.palette_only:
        return {PALETTE_FILE: _fetched(name_or_path, PALETTE_FILE, location)}
    whole, index = (_of_variant(name, variant) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    path = _fetched(name_or_path, whole, location, may_be_missing=True)
    if path is not None:
        return {whole: path}
    path = _fetched(name_or_path, index, location, may_be_missing=True)
    if path is None:
        raise OSError(
            f"{name_or_path!r} has neither {whole} nor {index}. Palette models are read from safetensors alone, since "
            "other files of weights are pickles, which can hold code."
        )
    weight_map = shards_of_index(path, name_or_path)
    of_palette = {file for name, file in weight_map.items() if name.startswith("palette.")}
    wanted = set(weight_map.values()) if location.get("force_download") else of_palette
    paths = {file: _fetched(name_or_path, file, location) for file in sorted(wanted)}
    return {file: path for file, path in paths.items() if file in of_palette}


def _of_variant(name: str, variant: str | None) -> str:
    stem, ending = name.rsplit(".", 1)
    return name if variant is None else f"{stem}.{variant}.{ending}"
