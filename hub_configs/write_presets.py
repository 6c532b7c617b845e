"""Writes the presets, a folder for each base of `bases.yaml` with a file for each stage of `stages.yaml`, and the
tables of `README.md`, whose figures are computed from these files. A minute on one core; run it after any change to
them:

    python hub_configs/write_presets.py

Files of a preset are made to be read and copied; edit `stages.yaml` instead where all bases are meant.
"""

from pathlib import Path
from typing import Any

import yaml
from estimates.base_facts import BaseFacts, load_bases
from estimates.readme_tables import write_tables

FOLDER = Path(__file__).parent
SCRIPTS = {"vae": "02_train_vae", "sft": "04_train_sft", "grpo": "05_train_grpo", "rloo": "05_train_rloo"}
BEFORE = {"sft": "vae", "grpo": "sft", "rloo": "sft"}


def load_stages() -> dict[str, dict[str, tuple[Any, str]]]:
    """Settings with their sources, by stage."""
    return yaml.safe_load((FOLDER / "stages.yaml").read_text())


def preset_text(base: BaseFacts, stage: str) -> str:
    """The file of one stage of one base."""
    terms = f"licence {base.licence}" + (", to be accepted on the Hub first" if base.gated else "")
    before = f", after {BEFORE[stage]}.yaml" if stage in BEFORE else ""
    lines = [
        f"# {base.id}, revision {base.revision[:12]}; {terms}.",
        f"# From the root of the repository{before}:",
        "#",
        f"#   python examples/{SCRIPTS[stage]}.py --config hub_configs/{base.name}/{stage}.yaml",
        "#",
        "# A flag on that line goes before the value here. What the sources mean, and memory and time: ../README.md.",
    ]
    own = base.settings if stage != "vae" else base.vae_settings
    kind = f"vision-{stage}" if base.vision else stage
    for key, (value, source) in {**load_stages()[kind], **own}.items():
        if isinstance(value, str):
            value = value.format(name=base.name, id=base.id, stage=stage)
        text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        lines.append(f"{key}: {text}  # {source}")
    return "\n".join(lines) + "\n"


def presets() -> dict[Path, str]:
    """All files by their path."""
    return {
        FOLDER / base.name / f"{stage}.yaml": preset_text(base, stage)
        for base in load_bases().values()
        for stage in SCRIPTS
    }


if __name__ == "__main__":
    for path, text in presets().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    write_tables(FOLDER / "README.md")
