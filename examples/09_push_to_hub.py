"""Publishes a palette checkpoint with a model card made of what the stages before measured.

The card says which traces the palette was trained on and under which licences, what the VAE reached (`training.json`
of 02_train_vae.py), shows the map (03_map_latents.py) and the tables of 06_evaluate.py, and pins its snippets to the
commit. What was not measured or is not known, it says to be unknown. Look at it before anyone else does:

    python examples/09_push_to_hub.py --model demo_output/grpo --dry_run demo_output/published

writes the folder that would be uploaded, card included, without asking the Hub. After `hf auth login`, publish it:

    python examples/09_push_to_hub.py --model demo_output/grpo --repo_id my-org/countdown-palette --license apache-2.0

`--palette_only` publishes the palette without the weights of its base, which must then be on the Hub (`--base_id`). It
leaves out judgement: what the model is for and not for is yours to write, and a later push keeps what you wrote.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, hf_hub_download
from transformers import HfArgumentParser

from reasoning_palette.evaluation.card_sections import Measured, shown_name
from reasoning_palette.modeling_palette import PaletteForCausalLM
from reasoning_palette.modeling_palette.palette_card import hub_name, new_card, refresh_card


@dataclass
class PushArguments:
    """What to publish, and where its figures are."""

    model: str = field(default="demo_output/grpo", metadata={"help": "Checkpoint to publish (folder or Hub id)."})
    repo_id: str | None = field(default=None, metadata={"help": "Repository to publish it as."})
    dry_run: str | None = field(default=None, metadata={"help": "Write this folder instead of asking the Hub."})
    palette_only: bool = field(default=False, metadata={"help": "Publish the palette and the name of its base."})
    private: bool = field(default=False, metadata={"help": "Make the repository a private one."})
    base_id: str | None = field(default=None, metadata={"help": "The base's name on the Hub."})
    base_revision: str | None = field(default=None, metadata={"help": "The base's commit."})
    license: str | None = field(default=None, metadata={"help": "Licence, if not the one in the card of the base."})
    trace_licenses: list[str] = field(
        default_factory=list, metadata={"help": "Licences of traces, each `source=licence`."}
    )
    training: str | None = field(
        default="demo_output/palette/training.json", metadata={"help": "Record of the VAE's training."}
    )
    maps: str | None = field(default="demo_output/maps", metadata={"help": "Folder of the latent map."})
    evaluation: str | None = field(
        default="demo_output/evaluation",
        metadata={"help": "Folder of results; those of other models are shown for comparison."},
    )
    prompt: str = field(default="numbers 6 4 3 target 21", metadata={"help": "Prompt of the card's snippets."})


def existing(path: str | Path | None, what: str) -> Path | None:
    """A path if it is there; says so if it is not, since the card will then say 'unknown'."""
    if path is not None and Path(path).exists():
        return Path(path)
    print(f"No {what} ({path}): the card will say so.")
    return None


def read_results(folder: Path | None, model: str) -> tuple[list[dict], list[dict]]:
    """Results of the model, and those of others. Folders are named by their last part: the rest is this machine's."""
    own, others = [], []
    for path in sorted(folder.glob("*.json")) if folder else []:
        result = json.loads(path.read_text())
        is_own = Path(result["model"]).name == Path(model).name
        result["model"] = shown_name(result)
        (own if is_own else others).append(result)
    return own, others


def license_of_base(name: str | None, revision: str | None, offline: bool) -> dict[str, str]:
    """What the card of the base says of its licence, as far as there is one."""
    if name is None:
        return {}
    try:
        if Path(name).is_dir():
            path = Path(name) / "README.md"
        else:
            path = Path(hf_hub_download(name, "README.md", revision=revision, local_files_only=offline))
        data = ModelCard.load(path).data.to_dict() if path.is_file() else {}
    except OSError as error:  # EntryNotFoundError and HfHubHTTPError are OSErrors too
        print(f"The card of the base cannot be read, so its licence is unknown: {error}")
        return {}
    found = {key: data[key] for key in ("license", "license_name", "license_link") if data.get(key)}
    if "license_link" in found and "://" not in found["license_link"]:  # a file beside the base's card
        file = found.pop("license_link")
        if not Path(name).is_dir():
            found["license_link"] = f"https://huggingface.co/{name}/blob/{revision or 'main'}/{file}"
    return found


def write_card_folder(args: PushArguments, model: Any, base_license: dict[str, str], folder: Path) -> ModelCard:
    """README.md and what it shows: the map, and the records that its figures come from."""
    training = existing(args.training, "record of the VAE's training")
    maps = existing(args.maps, "latent map")
    results, compared = read_results(existing(args.evaluation, "results"), args.model)
    if not results:
        print(f"None of the results is of {args.model}: the card will say so.")
    image = maps / "latent_map.png" if maps else None
    figures = maps / "latent_map.json" if maps else None
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for source, name, key in (
        (training, "figures/training.json", "training"),
        (figures, "figures/latent_map.json", "latent_map"),
        (image, "figures/latent_map.png", "image"),
    ):
        if source is not None and source.is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
            files[key] = name
    if results:
        files["results"] = "figures/evaluation.json"
        (folder / "figures").mkdir(exist_ok=True)
        (folder / files["results"]).write_text(json.dumps([*results, *compared]) + "\n")

    licenses = dict(entry.rsplit("=", 1) for entry in args.trace_licenses)
    measured = Measured(
        training=json.loads(training.read_text()) if training else None,
        latent_map=json.loads(figures.read_text()) if "latent_map" in files and figures else None,
        map_image=files.get("image"),
        results=results,
        compared=compared,
        trace_licenses=licenses,
        base_license=base_license.get("license_name", base_license.get("license")),
        files=files,
    )
    repo_id = args.repo_id or Path(args.dry_run or "").name
    card = new_card(model, repo_id, args.palette_only, prompt=args.prompt, measured=measured.sections())
    for key, value in ({"license": args.license} if args.license else base_license).items():
        setattr(card.data, key, value)
    card.data.datasets = measured.datasets() or None
    results = measured.eval_results(card.data.pipeline_tag)
    card.data.model_name, card.data.eval_results = repo_id.split("/")[-1], results or None
    card.save(folder / "README.md")
    return card


def load(args: PushArguments) -> tuple[Any, dict[str, str]]:
    """The model, with a base that others can find or none, and the licence of the base."""
    model = PaletteForCausalLM.from_pretrained(args.model)
    if args.base_id is not None:
        model.config.base_model_name_or_path = args.base_id
        model.config.base_model_revision = args.base_revision
    base = model.config.base_model_name_or_path
    base_license = license_of_base(base, model.config.base_model_revision, offline=args.dry_run is not None)
    if hub_name(base) is None:
        if args.palette_only:
            raise ValueError(
                f"The base of {args.model!r} is {base!r}, which nobody else has, and `--palette_only` publishes a "
                "palette without it. Name the base on the Hub with `--base_id`, or publish the whole model."
            )
        model.config.base_model_name_or_path = None  # a folder of this machine means nothing on another
    return model, base_license


def main(args: PushArguments) -> None:
    if args.repo_id is None and args.dry_run is None:
        raise ValueError("Say where to publish with `--repo_id`, or write a folder with `--dry_run FOLDER`.")
    wrong = [entry for entry in args.trace_licenses if "=" not in entry]
    if wrong:
        raise ValueError(
            f"`--trace_licenses` has {wrong[0]!r}; write `source=licence`, such as openai/gsm8k:main=mit."
        )
    model, base_license = load(args)
    if args.dry_run is not None:
        model.save_pretrained(args.dry_run, palette_only=args.palette_only)
        write_card_folder(args, model, base_license, Path(args.dry_run))
        print(f"\n{args.dry_run} holds what would be published. Its card: {args.dry_run}/README.md")
        return
    with tempfile.TemporaryDirectory() as folder:
        card = write_card_folder(args, model, base_license, Path(folder))
        commit = model.push_to_hub(
            args.repo_id, palette_only=args.palette_only, private=args.private or None, card=folder
        )
        # Only now is the hash known that the snippets pin. If this second commit fails, they say that they are not.
        repo_id = commit.repo_url.repo_id
        pinned = refresh_card(card, model, repo_id, args.palette_only, revision=commit.oid)
        HfApi().upload_file(
            path_or_fileobj=pinned.content.encode(),
            path_in_repo="README.md",
            repo_id=repo_id,
            commit_message=f"The card pins {commit.oid[:12]}",
        )
        print(f"\nPublished {commit.repo_url} at {commit.oid}; the snippets of its card pin that commit.")


if __name__ == "__main__":
    main(HfArgumentParser(PushArguments).parse_args_into_dataclasses()[0])
