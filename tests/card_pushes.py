"""What test_pushed_cards.py runs in processes of their own, with the stand-in as their Hub.

`python card_pushes.py TASK OUTPUT ARGUMENTS`; `snippets` and `travels` run where this package cannot be imported.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import sys
import warnings
from pathlib import Path

TRUST = {"trust_remote_code": True}


def publish(*commands):
    """09_push_to_hub, once for each list of arguments."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    example = importlib.import_module("09_push_to_hub")
    parser = example.HfArgumentParser(example.PushArguments)
    for command in commands:
        example.main(parser.parse_args_into_dataclasses(command)[0])


def snippets(*repos):
    """What came of the snippets of published cards."""
    return {repo: snippets_of(repo) for repo in repos}


def snippets_of(repo):
    """Runs every snippet of a published card, each in names of its own; returns code and what it printed."""
    from huggingface_hub import ModelCard

    found = []
    for code in re.findall(r"```python\n(.*?)```", ModelCard.load(repo).text, flags=re.DOTALL):
        printed, names = io.StringIO(), {}
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "snippet", "exec"), names)
        classes = [type(names[name]).__name__ for name in ("model", "base", "generator") if name in names]
        trainers = [names[name].__name__ for name in ("trainer_class", "config_class") if name in names]
        replayed = bool((names["four"].sequences[2] == names["third"][0]).all()) if "four" in names else None
        found.append({"printed": printed.getvalue(), "classes": classes + trainers, "replayed": replayed})
    return found


def travels(repo, target, again):
    """A model of the Hub is pushed to another repository, then pushed to its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(repo, **TRUST)
    model.push_to_hub(target, palette_only=True)
    model.push_to_hub(again, palette_only=True, tags="later")


def folders(folder, named, unnamed):
    """`save_pretrained(push_to_hub=True)` of a folder with a card: to a repository with one, and to one without."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(named, **TRUST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(folder, palette_only=True, push_to_hub=True, repo_id=named)
    said = [str(warning.message) for warning in caught if "was not uploaded" in str(warning.message)]
    kept = (Path(folder) / "README.md").read_text()
    model.save_pretrained(folder, palette_only=True, push_to_hub=True, repo_id=unnamed)
    return {"said": said, "kept": kept}


if __name__ == "__main__":
    task, output, arguments = sys.argv[1:]
    if task in ("snippets", "travels"):
        assert importlib.util.find_spec("reasoning_palette") is None
    Path(output).write_text(json.dumps({"found": globals()[task](*json.loads(arguments))}))
