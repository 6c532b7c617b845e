"""What was measured, in sections of a model card: traces, VAE, map, accuracy. What no record says is unknown."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..modeling_palette.palette_card import escaped, hub_name
from ..trainers.palette_model_card import PALETTE_PAPER
from .accuracy_tables import (
    accuracy_table,
    by_model,
    by_settings,
    describe_settings,
    mean,
    method_names,
    methods_named,
    settings_of,
    strategy_table,
)

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Measured:
    """
    What is known of a palette beside the model itself; None and empty where nothing is.

    Args:
        training (`dict`, *optional*): The record that 02_train_vae.py writes (`training.json`).
        latent_map (`dict`, *optional*): The figures that 03_map_latents.py writes (`latent_map.json`).
        map_image (`str`, *optional*): Name of the map beside the card.
        results (`list[dict]`, *optional*): Results of the published model, as `EvaluationResult.to_dict` has them.
        compared (`list[dict]`, *optional*): Results of others on the same benchmarks.
        trace_licenses (`dict[str, str]`, *optional*): Source of traces -> its licence.
        base_license (`str`, *optional*): Licence of the base.
        files (`dict[str, str]`, *optional*): Name of a record (`training`, `latent_map`, `results`) -> file beside the
            card that holds it.
    """

    training: Mapping[str, Any] | None = None
    latent_map: Mapping[str, Any] | None = None
    map_image: str | None = None
    results: Sequence[Mapping[str, Any]] = ()
    compared: Sequence[Mapping[str, Any]] = ()
    trace_licenses: Mapping[str, str] | None = None
    base_license: str | None = None
    files: Mapping[str, str] | None = None

    def sections(self) -> dict[str, str]:
        """Heading -> Markdown, in the order of the card."""
        return {
            "Traces and licences": self._traces(),
            "Palette VAE": self._vae(),
            "Latent map": self._map(),
            "Accuracy": self._accuracy(),
            "Citation": citation(),
        }

    def datasets(self) -> list[str]:
        """Names of the traces' sources that are data sets on the Hub."""
        names = [self._dataset(source) for source in (self.training or {}).get("traces", [])]
        return list(dict.fromkeys(name for name in names if name is not None))

    def eval_results(self, task_type: str = "text-generation") -> list[EvalResult]:
        """pass@1 of every method on the published model, as the Hub's `model-index` has it; means over seeds.

        Args:
            task_type (`str`, *optional*, defaults to `"text-generation"`): The card's `pipeline_tag`.
        """
        found = []
        for group in by_settings(self.results):
            first, seeds = group[0], sorted(result["seed"] for result in group)
            for name in method_names(group):
                methods = methods_named(group, name)
                found.append(
                    EvalResult(
                        task_type=task_type,
                        dataset_type=re.sub(r"\W+", "-", first["benchmark"]).strip("-").lower(),
                        dataset_name=first["benchmark"],
                        metric_type="pass@1",
                        metric_value=round(mean(method["mean_at_1"] for method in methods), 6),
                        metric_name=f"pass@1, {name}",
                        metric_args={
                            **{key: value for key, value in methods[0]["method"].items() if value and key != "name"},
                            "num_problems": first["num_problems"],
                            "num_samples": first["num_samples"],
                            "max_new_tokens": first["max_new_tokens"],
                            "seeds": seeds,
                        },
                    )
                )
        return found

    @staticmethod
    def _dataset(source: Mapping[str, Any]) -> str | None:
        """The Hub's name of a source of traces: `id:configuration` without the configuration."""
        if not source.get("is_on_hub"):
            return None
        return hub_name(source["source"].partition(":")[0])

    def _traces(self) -> str:
        base = f"Licence of the base: {self.base_license or UNKNOWN}."
        if not (self.training or {}).get("traces"):
            given = [f"`{escaped(name)}`: {text}" for name, text in (self.trace_licenses or {}).items()]
            return f"The traces that the palette was trained on are unknown. {base}" + (
                f" Licences that were given: {'; '.join(given)}." if given else ""
            )
        rows = ["| traces | used for | domain | number | licence |", "| --- | --- | --- | ---: | --- |"]
        for kind, used in (("traces", "training"), ("eval_traces", "held out")):
            for source in (self.training or {}).get(kind, []):
                name = source["source"]
                dataset = self._dataset(source)
                shown = f"[{name}](https://huggingface.co/datasets/{dataset})" if dataset else f"`{escaped(name)}`"
                license_ = (self.trace_licenses or {}).get(name) or source.get("license") or UNKNOWN
                domain = f"`{escaped(source['domain'])}`" if source.get("domain") else "as its rows say"
                rows.append(f"| {shown} | {used} | {domain} | {source['count']:,} | {escaped(license_)} |")
        return "\n".join(rows) + f"\n\n{base}"

    def _vae(self) -> str:
        figures = (self.training or {}).get("figures") or {}
        if not figures:
            return "Reconstruction, KL and active dimensions of the VAE are unknown."
        settings = (self.training or {}).get("settings", {})
        head = "| traces | unexplained variance | KL (nats per trace) | active dimensions |"
        rows = [head, "| --- | ---: | ---: | ---: |"]
        for prefix, name in (("train", "training"), ("eval", "held out")):
            if f"{prefix}_kl" in figures:
                reconstruction, kl = figures[f"{prefix}_reconstruction"], figures[f"{prefix}_kl"]
                active = f"{figures[f'{prefix}_active_units']} of {settings.get('latent_dim', '?')}"
                rows.append(f"| {name} | {reconstruction:.3f} | {kl:.1f} | {active} |")
        text = [
            "\n".join(rows),
            "Unexplained variance is the reconstruction error: 0 is perfect, 1 as good as the mean of all traces. A "
            "dimension is active if its posterior mean varies by more than 0.01 over the traces.",
        ]
        if settings:
            text.append("Settings: " + ", ".join(f"`{name}={value}`" for name, value in settings.items()) + ".")
        return "\n\n".join([*text, _origin(self.training or {}, (self.files or {}).get("training"))])

    def _map(self) -> str:
        if self.latent_map is None:
            return "No map of the latents was made, and no probe of their domains."
        figures = self.latent_map
        counts = ", ".join(f"`{escaped(name)}` {count:,}" for name, count in figures["traces"].items())
        text = [
            f"A linear probe tells the domain of held-out latents with accuracy {figures['accuracy']:.3f} (balanced "
            f"{figures['balanced_accuracy']:.3f}; the largest domain is {figures['largest_domain_share']:.1%} of the "
            f"traces), 5-fold cross-validation over {counts} traces."
        ]
        draws = figures.get("draws_read_as_their_domain", {})
        if draws:
            read = ", ".join(f"`{escaped(name)}` {share:.1%}" for name, share in draws.items())
            text.append(f"Draws from a domain that the probe reads as that domain: {read}.")
        if self.map_image is not None:
            text.append(f"![Latents and decoded prefixes of held-out traces, by domain]({self.map_image})")
        text.append(_record((self.files or {}).get("latent_map")))
        return "\n\n".join(filter(None, text))

    def _accuracy(self) -> str:
        if not self.results:
            return "The accuracy of this model was not measured, or not given to this card."
        parts = []
        for group in by_settings(self.results):
            parts.append(describe_settings(group))
            parts.append(accuracy_table(group))
            if any(len(method["strategies"]) > 1 for result in group for method in result["methods"]):
                parts += ["Share of the samples that follow each strategy:", strategy_table(group)]
            parts.append(_origin(group[0], (self.files or {}).get("results")))
            same = [other for other in self.compared if settings_of(other) == settings_of(group[0])]
            for others in by_model(same):
                seeds = ", ".join(str(other["seed"]) for other in others)
                parts += [
                    f"For comparison, `{escaped(shown_name(others[0]))}`, seed {seeds}:",
                    accuracy_table(others),
                ]
        return "\n\n".join(parts)


def shown_name(result: Mapping[str, Any]) -> str:
    """What a card calls the model of a result: its id on the Hub, or the last part of its folder."""
    model = str(result["model"])
    return model if hub_name(model) and not os.path.isabs(model) else Path(model).name


def citation() -> str:
    """The paper and this package, in BibTeX."""
    try:
        release = f"  version = {{{version('reasoning-palette')}}},\n"
    except PackageNotFoundError:
        release = ""
    software = (
        "@software{reasoningpalette,\n"
        "  title   = {reasoning-palette: latent prefixes for Hugging Face models},\n"
        f"{release}"
        "  license = {Apache-2.0},\n"
        "  note    = {Independent implementation of arXiv 2512.17206},\n"
        "}"
    )
    entries = f"{PALETTE_PAPER['citation']}\n\n{software}"
    return f"The method, and the software that this palette was made with:\n\n```bibtex\n{entries}\n```"


def read_record(path: str | os.PathLike) -> Any:
    """JSON of a file."""
    return json.loads(Path(path).read_text())


def _origin(record: Mapping[str, Any], file: str | None) -> str:
    """Where figures come from: versions and hardware, and the file that holds them."""
    environment = record.get("environment") or {}
    names = ("reasoning-palette", "torch", "transformers", "trl")
    versions = environment.get("versions", {})
    parts = [f"{name} {versions[name]}" for name in names if name in versions]
    if environment.get("commit"):
        parts.append(f"commit `{environment['commit']}`")
    if environment:
        parts.append(", ".join(environment.get("accelerators", [])) or "no accelerator")
    return " ".join(filter(None, [f"Measured with {', '.join(parts)}." if parts else "", _record(file)]))


def _record(file: str | None) -> str:
    return f"[All figures]({file})." if file else ""
