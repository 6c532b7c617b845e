"""
Writes the page on what checkpoints may do, with the table of those that mean harm, from what loading them says here:

    python tests/security_page.py docs/security.md
"""

import re
import sys
import tempfile
from pathlib import Path

import safetensors
import torch
import transformers
from hostile_checkpoints import KINDS, LOADS
from hostile_runs import CONTROL, ENOUGH, outcomes

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
HEAD = "| what is wrong | what loading says | memory |"

INTRODUCTION = f"""\
# Security of checkpoints

A checkpoint of the Hub was made by whoever made it: its files, the sizes and names in its config, the base that it
names and the code that lies beside it.

## What runs

- Without `trust_remote_code=True`, nothing of a repository runs. With this package installed, its own classes load the
  checkpoint; without it, transformers refuses.
- `trust_remote_code=True` is trust in the repository that is named. Where the package is not installed, it runs the
  modules at that repository's root which the config's `auto_map` names, and those that they import from beside them. A
  repository can name modules of another one in its `auto_map`; transformers follows that too, and warns. Pin what you
  have read: `revision="<commit>"`.
- Modules in `trainers/` run when a class is fetched from them, with `get_class_from_dynamic_module`, and
  `custom_generate/generate.py` when `generate` is given `custom_generate="<repository>"`. Neither runs when a model is
  loaded.
- The base that a palette-only checkpoint names is another repository, and trust in the palette's is none in the
  base's: code of the base runs with `base_trust_remote_code=True` alone.

## What the code of a palette checkpoint does not do

The modules that travel with checkpoints read no environment variables, start no processes, unpickle nothing and open
no connections of their own. What they need from a repository they ask transformers and huggingface_hub for: the files
of the checkpoint that is being loaded, of its base and of its adapter. Two more requests exist. Saving without the
package installed reads the rest of the code (the trainers) from the repository that the model came from, at the commit
that is running; and a push reads the cards that it is about to replace. Trainers fetch an image where a row of the
data names it by an address. `tests/test_quiet_code.py` reads every module for what it may not say, and the tests that
load, save, push and train without the package do so while the process is watched (`tests/quiet_code.py`).

## How files are read

- Weights come from safetensors alone, those of full checkpoints, palettes and adapters; a `.bin` is a pickle, and is
  refused wherever it is named. The base of a palette-only checkpoint is held to the same; `use_safetensors=False` in
  `from_pretrained` lets the weights of a base that you trust be unpickled, as transformers does it (`weights_only`).
- The header is read before anything else, without mapping the file into memory that can be written: names, shapes and
  dtypes of all tensors of the palette must be those that the config describes. A palette has at most 4 GiB, 256 layers
  and a header of 16 MiB.
- Every number of the palette must be finite.
- The index of a checkpoint in shards names safetensors files beside it, and nothing else.
- The base is looked at before it is loaded: a palette as base, and adapters that name each other in a circle, are
  refused. Vocabulary and latent ids are compared on the base that was loaded, not on what the palette's config says.
- Nothing is saved through a link: a folder in which a file of the checkpoint is a symbolic link is refused.

What a base's own config describes is transformers' to check, as for every stock model: a base with a million layers
takes the memory of a million layers, whoever names it.

## Checkpoints that mean harm

Each is a sound checkpoint with one thing changed, loaded in a process of its own that may allocate 1 GiB more than it
has, under an audit hook. For each of them: no code of the checkpoint ran, nothing was unpickled, no process was
started, no file was written, moved or removed beside the caches and the folder to save to, no connection was made to
anything but the Hub, and memory grew by less than {ENOUGH >> 20} MiB. (A case that does all of this shows that each
would have been seen.) "{LOADS}": what is wrong does no harm. Memory counts what is imported on the way, and
differs a little from run to run.
"""


def says(case, outcome, folder):
    """The first sentence of an error, without where the folders of this run lie."""
    text = outcome["error"] or LOADS
    for place in (folder / case.name, folder):
        text = text.replace(f"{place}/", "").replace(str(place), ".")
    text = re.sub(r"\s+", " ", text).split(". ")[0].rstrip(".")
    text = re.sub(r" for tensor `\w+`", "", text)  # of several that are wrong, safetensors names any
    text = text if len(text) <= 200 else f"{text[:200].rsplit(' ', 1)[0]} …"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def rows(found, folder):
    """Kind -> cells of each of its cases."""
    return {
        kind: [
            [case.what, says(case, found[case.name], folder), f"{found[case.name]['growth'] >> 20} MiB"]
            for case in group
        ]
        for kind, group in KINDS.items()
    }


def page(found, folder):
    harmful = [name for name, outcome in found.items() if name != CONTROL and is_harmful(outcome)]
    assert not harmful, harmful
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    lines = [
        INTRODUCTION,
        f"Written by `python tests/security_page.py docs/security.md` with {versions} and safetensors "
        f"{safetensors.__version__}: {sum(map(len, KINDS.values()))} checkpoints.",
    ]
    for kind, table in rows(found, folder).items():
        lines += [f"\n### {kind}\n", HEAD, "| --- | --- | --- |", *(f"| {' | '.join(cells)} |" for cells in table)]
    return "\n".join(lines) + "\n"


def is_harmful(outcome):
    """Whether a checkpoint did anything that it may not do."""
    did = ("ran", "unpickled", "started", "written")
    return "failed" in outcome or any(outcome[name] for name in did) or outcome["growth"] >= ENOUGH


def committed_rows():
    """What the committed page says, without the memory: kind -> cells of each row."""
    found = {}
    for section in PAGE.read_text().split("\n### ")[1:]:
        kind, _, rest = section.partition("\n")
        table = [line[2:-2].split(" | ") for line in rest.splitlines() if line.startswith("| ")]
        found[kind] = [cells[:2] for cells in table if f"| {' | '.join(cells)} |" != HEAD and cells[0] != "---"]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _folder:
        _text = page(outcomes(_folder), Path(_folder))
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(_text)
