"""The code that travels with a checkpoint: the palette's at the root, the trainers' in `trainers/`, and for bases that
know nothing of palettes `custom_generate/generate.py`."""

import re
import shutil
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

TRAINERS = "trainers"
_SHIPPED = re.compile(rf"({TRAINERS}/)?(?!__)[^/]+\.py")
_COMMIT = re.compile("[0-9a-f]{40}")


def copy_code(folder: str | Path, loaded_from: str | None, location: dict[str, Any] | None = None) -> None:
    """
    Put the code of the palette (flat, at the root) and of the trainers (in `trainers/`) into a checkpoint.

    Without the package, transformers has copied only those modules out of a checkpoint that the model imports. The
    others are read where the checkpoint is, at the commit whose code is running. Beside the cards that
    `push_to_hub` reads, this is the only request that the palette's code makes of its own.

    Args:
        folder (`str` or `Path`): The checkpoint.
        loaded_from (`str`, *optional*): The folder or Hub id that the model was loaded from.
        location (`dict`, *optional*): `revision`, `token`, `cache_dir` of that load.

    Warns:
        if the trainers cannot be reached; the checkpoint then serves, and lacks them.
    """
    folder, here = Path(folder), Path(__file__).resolve().parent
    copied = _copy_modules(here, folder)
    if (here.parent / TRAINERS / "palette_sft_trainer.py").is_file():
        _copy_modules(here.parent, folder, TRAINERS)
        return
    missing: str | None = None
    source: Path | None = here
    if loaded_from and Path(loaded_from).is_dir():
        source = Path(loaded_from)
    elif loaded_from:
        source, missing = _from_hub(loaded_from, location or {}, here)
    if source is not None:
        _copy_modules(source, folder, but=copied)
        _copy_modules(source, folder, TRAINERS)
    if missing is None and not (folder / TRAINERS / "palette_sft_trainer.py").is_file():
        missing = f"{loaded_from!r} has none" if loaded_from else "the model was not loaded from a checkpoint"
    if missing is not None:
        warnings.warn(
            f"The trainers were not copied into {str(folder)!r}, or not all of them: {missing}. The checkpoint works "
            "without them. Save it again when they can be reached, or with the reasoning-palette package installed.",
            stacklevel=3,
        )


def copy_custom_generate(folder: str | Path) -> None:
    """Put `custom_generate.py` where `generate(custom_generate=...)` of transformers looks for it."""
    module = Path(folder) / "custom_generate.py"
    if module.is_file():  # without it, `copy_code` has warned of files that it could not reach
        target = module.with_suffix("") / "generate.py"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(module, target)


def _from_hub(repo_id: str, location: dict[str, Any], here: Path) -> tuple[Path | None, str | None]:
    """The folder of the cache with the modules of a repository, and why some of them are missing."""
    # transformers keeps the code of a repository in a folder that has the commit's name.
    revision = location.get("revision")
    revision = here.name if _COMMIT.fullmatch(here.name) else getattr(revision, "resolved", revision)
    where: dict[str, Any] = {"revision": revision, "token": location.get("token")}
    missing, names = None, ["*.py"]
    try:
        # A snapshot that was downloaded in part looks whole where the Hub cannot be asked: so ask first.
        names = [name for name in HfApi().list_repo_files(repo_id, **where) if _SHIPPED.fullmatch(name)]
    except Exception as error:  # a training must be saved all the same
        missing = f"{repo_id!r} could not be read at {revision} ({error})"
        where["local_files_only"] = True
    try:
        cache_dir = location.get("cache_dir")
        return Path(snapshot_download(repo_id, allow_patterns=names, cache_dir=cache_dir, **where)), missing
    except Exception as error:
        return None, missing or f"{repo_id!r} could not be read at {revision} ({error})"


def _copy_modules(source: Path, target: Path, under: str = "", but: Container[str] = ()) -> list[str]:
    """Copy the modules of a folder, except those of the given names; returns the names of what the folder has."""
    names = sorted(path.relative_to(source).as_posix() for path in (source / under).glob("*.py"))
    names = [name for name in names if _SHIPPED.fullmatch(name)]
    if source.resolve() != target.resolve():
        for name in names:
            if name not in but:
                (target / under).mkdir(exist_ok=True)
                shutil.copyfile(source / name, target / name)
    return names
