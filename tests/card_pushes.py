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


def trains(folder, base):
    """The VAE's trainer pushes, and an SFT of a LoRA adapter on its palette, put on a folder's base in memory."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    from reasoning_palette.modeling_palette import PaletteForCausalLM
    from reasoning_palette.trainers import PaletteSFTConfig, PaletteSFTTrainer, PaletteVAEConfig, PaletteVAETrainer

    common = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_steps": 2}
    traces = [{"question": f"numbers {n}", "answer": str(n), "domain": "ab"[n % 2]} for n in range(20)]
    args = PaletteVAEConfig(f"{folder}/vae", latent_dim=4, hidden_sizes=[8], hub_model_id="alice/vae", **common)
    vae_trainer = PaletteVAETrainer("alice/countdown-base", args, traces)
    vae_trainer.train()
    vae_trainer.push_to_hub()
    loaded = AutoModelForCausalLM.from_pretrained("alice/vae", **TRUST)
    own, again = vae_trainer.palette.state_dict(), loaded.palette.state_dict()
    same = own.keys() == again.keys() and all(bool((own[name] == again[name]).all()) for name in own)

    on_folder = PaletteForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), vae_trainer.palette)
    args = PaletteSFTConfig(
        f"{folder}/lora",
        save_steps=1,
        push_to_hub=True,
        hub_model_id="alice/lora",
        hub_always_push=True,
        gradient_checkpointing=False,
        **common,
    )
    rows = Dataset.from_list([{"prompt": f"numbers {n}", "completion": f" {n}"} for n in range(16)])
    trainer = PaletteSFTTrainer(on_folder, args=args, train_dataset=rows, peft_config=LoraConfig(r=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return {"same": same, "said": [str(warning.message) for warning in caught]}


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
