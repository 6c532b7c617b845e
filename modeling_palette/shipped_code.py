"""The code that travels with a checkpoint: the palette's at the root, the trainers' in `trainers/`, and for bases that
know nothing of palettes `custom_generate/generate.py`."""

import ast
import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

TRAINERS = "trainers"
# Modules that others import from a checkpoint by name; the rest of its code is what these, and `auto_map`'s, import.
ENTRIES = (
    "custom_generate.py",
    f"{TRAINERS}/best_latents.py",
    f"{TRAINERS}/palette_grpo_trainer.py",
    f"{TRAINERS}/palette_rloo_trainer.py",
    f"{TRAINERS}/palette_sft_trainer.py",
    f"{TRAINERS}/palette_vae_trainer.py",
)
_SHIPPED = re.compile(rf"({TRAINERS}/)?(?!__)[^/]+\.py")
_COMMIT = re.compile("[0-9a-f]{40}")


def copy_code(folder: str | Path, loaded_from: str | None, location: dict[str, Any] | None = None) -> list[str]:
    """
    Put the code of the palette (flat, at the root) and of the trainers (in `trainers/`) into a checkpoint.

    Without the package, transformers has copied only those modules out of a checkpoint that the model imports. The
    others are read where the checkpoint is, at the commit whose code is running: `ENTRIES` and what they import, as
    other files of that folder are its owner's. Beside the cards that `push_to_hub` reads, this is the only request
    that the palette's code makes of its own.

    Args:
        folder (`str` or `Path`): The checkpoint.
        loaded_from (`str`, *optional*): The folder or Hub id that the model was loaded from.
        location (`dict`, *optional*): `revision`, `token`, `cache_dir` of that load.

    Returns:
        `list[str]`: The modules of the checkpoint that are the palette's and the trainers', also those that lay there.

    Warns:
        if the trainers cannot be reached; the checkpoint then serves, and lacks them.
    """
    folder, here = Path(folder), Path(__file__).resolve().parent
    shipped = _copy_modules(here, folder, _modules(here))
    if (here.parent / TRAINERS / "palette_sft_trainer.py").is_file():
        # not every module there: without the package nobody could tell one that nothing imports from others' files
        return shipped + _copy_modules(here.parent, folder, _imported(here.parent, ENTRIES))
    missing: str | None = None
    source: Path | None = here
    if loaded_from and Path(loaded_from).is_dir():
        source = Path(loaded_from)
    elif loaded_from:
        source, missing = _from_hub(loaded_from, location or {}, here)
    if source is not None:
        others = [name for name in _imported(source, ENTRIES) if name not in shipped]
        shipped += _copy_modules(source, folder, others)
    if missing is None and not (folder / TRAINERS / "palette_sft_trainer.py").is_file():
        missing = f"{loaded_from!r} has none" if loaded_from else "the model was not loaded from a checkpoint"
    if missing is not None:
        warnings.warn(
            f"The trainers were not copied into {str(folder)!r}, or not all of them: {missing}. The checkpoint works "
            "without them. Save it again when they can be reached, or with the reasoning-palette package installed.",
            stacklevel=3,
        )
    return shipped


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


def _modules(source: Path) -> list[str]:
    return sorted(path.name for path in source.glob("*.py") if _SHIPPED.fullmatch(path.name))


def _imported(source: Path, entries: Iterable[str]) -> list[str]:
    """The given modules of a folder and those that they import from that folder, in turn, as far as they exist."""
    found: list[str] = []
    waiting = [name for name in entries if (source / name).is_file()]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.append(name)
        for node in ast.walk(ast.parse((source / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                paths = [(source / name).with_name(f"{module}.py") for module in modules]
                waiting += [path.relative_to(source).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def _copy_modules(source: Path, target: Path, names: list[str]) -> list[str]:
    if source.resolve() != target.resolve():
        for name in names:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return names
