"""The tables of `README.md`, between markers, computed from presets and bases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from estimates.base_facts import BaseFacts, load_bases
from estimates.compute_time import HARDWARE, step_seconds
from estimates.memory import GIB, training_memory
from estimates.preset_arguments import FOLDER, image_of, palette_bytes, palette_of, parse_preset
from estimates.training_setup import setup_of

# Tokens of a prompt in the tables.
PROMPT_LENGTH = 256
LAUNCHES = ((1, "single"), (8, "ddp"), (8, "fsdp2"), (8, "deepspeed_zero3"))
DEVICE = HARDWARE["h100"]


def table_of_bases() -> str:
    rows = []
    for base in load_bases().values():
        terms = base.licence + (", gated" if base.gated else "")
        path = FOLDER / base.name / "vae.yaml"
        image = image_of(path)
        rows.append(
            [
                f"[`{base.name}/`]({base.name})",
                f"`{base.id}`",
                terms,
                f"{base.parameters:,}",
                f"{2 * base.parameters / GIB:.1f}",
                f"{palette_bytes(palette_of(path)) / 2**20:.1f}",
                f"{image.tokens}" if image else "",
            ]
        )
    head = ["presets", "base", "licence", "parameters", "GiB in bfloat16", "palette, MiB", "tokens of an image"]
    return _table(head, rows)


def table_of_costs() -> str:
    rows = []
    for base in load_bases().values():
        rows += [_costs(base, "sft", "SFT"), _costs(base, "grpo", "GRPO, RLOO")]
    head = ["base", "stage", "1 device", "DDP, 8", "FSDP2, 8", "ZeRO-3, 8", "time, 1", "time, 8"]
    return _table(head, rows)


def _costs(base: BaseFacts, stage: str, title: str) -> list[str]:
    path = FOLDER / base.name / f"{stage}.yaml"
    config, size = base.build_config(), palette_bytes(palette_of(path))
    _, args = parse_preset(path)
    cells, hours = [], []
    for devices, strategy in LAUNCHES:
        setup = setup_of(args, PROMPT_LENGTH, devices, strategy, image_of(path))
        peak = training_memory(config, setup, size, DEVICE.memory)["peak"]
        cells.append(f"{peak:.0f}" if peak <= DEVICE.memory else f"({peak:.0f})")
        hours.append(setup.steps * step_seconds(config, setup, DEVICE)["step"] / 3600)
    return [base.name, title, *cells, _duration(hours[0]), _duration(hours[-1])]


def table_of_settings() -> str:
    """Settings by source; a value that stages share is named once."""
    stages: dict[str, dict[str, tuple[Any, str]]] = yaml.safe_load((FOLDER / "stages.yaml").read_text())
    titles = {"vae": "VAE", "sft": "SFT", "grpo": "GRPO, RLOO"}
    rows = []
    for kind, suffix in (("", ""), ("vision-", ", images")):
        for stage, title in titles.items():
            by_source: dict[str, list[str]] = {}
            for key, (value, source) in stages[kind + stage].items():
                if source != "where":
                    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                    by_source.setdefault(source, []).append(f"`{key}` {text}")
            rows += [[title + suffix, source, "; ".join(settings)] for source, settings in by_source.items()]
    return _table(["stage", "source", "settings"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "bases": table_of_bases,
    "costs": table_of_costs,
    "settings": table_of_settings,
}


def with_tables(text: str) -> str:
    """The page with each table between its markers made anew."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->\n", f"<!-- end of table: {name} -->"
        before, rest = text.split(start)
        text = before + start + table() + rest[rest.index(end) :]
    return text


def write_tables(path: Path) -> None:
    """Makes the tables of a page anew."""
    path.write_text(with_tables(path.read_text()))


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 30 else f"{hours * 3600:.0f} s"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
