"""
What the entry modules of a checkpoint's code name: `python tests/entry_imports.py` writes it into them.

transformers copies a module of a repository before those that it imports. When a download has broken off, it looks for
lost ones among the imports of the first module alone (`get_cached_module_file`, 5.19 and 5.24): what is lost further
down stays lost, and every later load ends with a FileNotFoundError. So an entry module names all that it leads to.
"""

import ast
import re
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

ROOT = Path(__file__).parent.parent
COMMENT = """\
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
"""
BLOCK = re.compile(rf"\nif TYPE_CHECKING:\n{re.escape(COMMENT)}(    from \..*\n)+")
TYPING = re.compile(r"^from typing import (?!.*TYPE_CHECKING)", re.MULTILINE)


def entries():
    """The modules that auto classes and users load by name."""
    palette, trainers = ROOT / "modeling_palette", ROOT / "trainers"
    models = [palette / "configuration_palette.py", palette / "modeling_palette.py"]
    return [*models, *sorted(trainers.glob("palette_*_trainer.py")), trainers / "best_latents.py"]


def public_name(module):
    """A class or function, else a constant of a module that is meant for others."""
    body = ast.parse(module.read_text()).body
    names = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    names += [target.id for target in targets if isinstance(target, ast.Name)]
    return next(name for name in names if not name.startswith("_"))


def reached(folder, names):
    """The modules of these names and those that they import, in turn."""
    found, waiting = set(), set(names)
    while waiting:
        found |= waiting
        waiting = {name for module in waiting for name in get_relative_imports(folder / f"{module}.py")} - found
    return found


def completed(entry):
    """The text of an entry module that names all that it leads to."""
    text, folder = BLOCK.sub("", entry.read_text()), entry.parent
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level}
    lost = sorted(reached(folder, named) - named - {entry.stem})
    if not lost:
        return text
    names = [(name, public_name(folder / f"{name}.py")) for name in lost]
    lines, at = text.splitlines(keepends=True), imports[-1].end_lineno
    written = [f"    from .{name} import {what} as {what}\n" for name, what in names]
    text = "".join([*lines[:at], "\nif TYPE_CHECKING:\n", COMMENT, *written, *lines[at:]])
    return TYPING.sub("from typing import TYPE_CHECKING, ", text, count=1)


if __name__ == "__main__":
    for entry, text in [(entry, completed(entry)) for entry in entries()]:
        entry.write_text(text)
