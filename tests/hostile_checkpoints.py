"""What the cases of hostile_weights.py and hostile_names.py are made of: a sound checkpoint, and ways to damage it."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from trainer_testing import tiny_base, tiny_palette, tiny_tokenizer

from reasoning_palette.modeling_palette import PaletteConfig, PaletteForCausalLM
from reasoning_palette.modeling_palette.checked_tensors import palette_from_config

FILE = "palette.safetensors"
LOADS = "loads"
# What hostile code does here: it leaves a mark.
CANARY = "import os; open(os.environ['HOSTILE_MARKER'], 'w').close()"
KINDS: dict[str, "list[Case]"] = {}


@dataclass
class Case:
    """One damaged checkpoint."""

    name: str
    what: str  # what is wrong, for the page
    expected: str  # a regular expression for the error, or LOADS
    damage: Callable[[Path], None]
    on: str = "palette"  # the sound checkpoint: "palette" or "full"
    how: str = "load"  # the function of hostile_checks.py that loads it
    through_hub: bool = False
    kind: str = ""
    arguments: dict = field(default_factory=dict)


def case(kind, what, expected, **settings):
    def add(damage):
        KINDS.setdefault(kind, []).append(Case(damage.__name__, what, expected, damage, kind=kind, **settings))
        return damage

    return add


def cases():
    return [case for group in KINDS.values() for case in group]


class Bomb:
    """Unpickled, it leaves the mark."""

    def __reduce__(self):
        return exec, (CANARY,)


def make_sound(folder, base_name):
    """A base, a palette-only and a full checkpoint."""
    base = tiny_base()
    base.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    model = PaletteForCausalLM.from_base(base, tiny_palette(), tokenizer=tiny_tokenizer())
    model.save_pretrained(folder / "full")
    model.config.base_model_name_or_path = base_name
    model.save_pretrained(folder / "palette", palette_only=True)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(folder, **fields):
    edit_json(folder / "config.json", lambda config: config.update(fields))


def edit_base_config(folder, **fields):
    edit_json(folder / "config.json", lambda config: config["base_config"].update(fields))


def edit_tensors(folder, change, file=FILE):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def write_file(folder, header, data=b"", claimed=None, size=None, file=FILE):
    """A safetensors file by hand; `size`: of its data, which is not written."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    with (folder / file).open("wb") as output:
        output.write(struct.pack("<Q", len(header) if claimed is None else claimed) + header + data)
        if size is not None:
            output.truncate(8 + len(header) + size)


def entry(shape, start=0, end=None, dtype="F32"):
    num_bytes = 4 * torch.Size(shape).numel() if end is None else end - start
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + num_bytes]}


def of_config(folder):
    """The header that a checkpoint's config asks for, and the size of its data."""
    with torch.device("meta"):
        tensors = palette_from_config(PaletteConfig.from_pretrained(folder), 32).state_dict()
    header, start = {}, 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        dtype = "BOOL" if tensor.dtype == torch.bool else "F32"
        header[name], start = entry(tensor.shape, start, start + num_bytes, dtype), start + num_bytes
    return header, start


def write_index(folder, file):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_base(folder):
    """A base of this checkpoint alone."""
    base = folder.parent / "base"
    shutil.copytree(folder.parent.parent / "base", base)
    edit_config(folder, base_model_name_or_path=str(base))
    return base


def write_adapter(folder, base):
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
