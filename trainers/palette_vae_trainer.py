"""Trains the palette: a VAE over pooled trace embeddings (METHOD eq. 5 to 8)."""

import copy
import importlib
import math
import os
import warnings
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .hub_pushes import HubPushMixin
from .palette_model_card import PALETTE_PAPER, complete_card, hub_id, palette_facts, repo_name, usage
from .palette_vae_config import PaletteVAEConfig
from .pooled_traces import PooledTraces
from .traces import TraceSource, load_traces
from .trainable_palette import PosteriorMetrics, TrainablePalette

if TYPE_CHECKING:
    # What the modules above import in turn: transformers completes a download of code that broke off with what the
    # first module names, and nothing else (written by tests/entry_imports.py).
    from .latent_schedule import LatentSchedule as LatentSchedule
    from .whole_checkpoints import checkpoint_step as checkpoint_step

_PACKAGE = "reasoning_palette.modeling_palette"
# exp(1 nat) is less than three: such a latent cannot tell three strategies apart.
MIN_KL = 1.0
# At 27 nats a model of the countdown testbed read the answer out of the latent and lost accuracy under prior draws; at
# 8.6 nats it did not.
MAX_KL = 20.0


class PosteriorCollapseWarning(UserWarning):
    """The latent says next to nothing about the trace, so that draws do not differ."""


class LatentOverloadWarning(UserWarning):
    """The latent says so much about the trace that posteriors are far from the prior that draws come from."""


class PaletteVAETrainer(HubPushMixin, Trainer):
    r"""
    Trains a [`PaletteVAE`] on the pooled embeddings of traces; the base is only read, once, for its input embedding.

    It is transformers' `Trainer` on a small module of ordinary parameters, and overrides these: `compute_loss` (eq. 8
    with KL warm-up), `log` (adds reconstruction and KL), `evaluation_loop` (its draws leave the training's generator
    alone), `train` (ends with the metrics of the whole training and evaluation sets), `evaluate` (pools traces that it
    is given), `save_model` (a palette-only checkpoint), `create_model_card` and what [`HubPushMixin`] lists (pushes of
    whole checkpoints). Checkpoints taken during training hold what a bit-exact resume needs.

    Metrics: `reconstruction` is the unexplained share of the variance (0: perfect, 1: as good as the mean), `kl` is in
    nats per trace, `active_units` counts the units of z whose posterior mean varies by more than 0.01 over the set.

    Args:
        model (`str`, `os.PathLike` or `PreTrainedModel`):
            The base: a loaded model, a folder or a Hub id.
        args ([`PaletteVAEConfig`], *optional*):
            Training arguments.
        train_dataset (`str`, `os.PathLike`, `Dataset`, `IterableDataset` or list):
            Traces: anything that [`load_traces`] takes. If they have a `domain` column, each domain gets a Gaussian.
        eval_dataset (same, or a dictionary of them, *optional*):
            Traces for evaluation.
        processing_class (*optional*):
            The base's tokenizer or processor. Loaded from where the base came from if not given.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks.
        optimizers (`tuple`, defaults to `(None, None)`):
            Optimiser and learning-rate scheduler.

    Raises:
        ImportError: If the `reasoning-palette` package is not installed.
        TypeError: If `args` is not a [`PaletteVAEConfig`], or `model` is no base.
        ValueError: If `train_dataset` holds no traces, or a domain of one trace, or more than 30 domains, or traces
            that are all the same; if no tokenizer is found; if `model` has a palette already.
    """

    _name = "the VAE of Reasoning Palette"
    config_class = PaletteVAEConfig
    _paper = PALETTE_PAPER
    _tag_names = ["reasoning-palette", "palette-vae", "arxiv:2512.17206"]  # noqa: RUF012
    # `compute_loss` is a mean over the batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel,
        args: PaletteVAEConfig | None = None,
        train_dataset: TraceSource | None = None,
        eval_dataset: TraceSource | dict[str, TraceSource] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        args = PaletteVAEConfig("palette-vae") if args is None else args
        if not isinstance(args, PaletteVAEConfig):
            raise TypeError(f"`args` must be a PaletteVAEConfig, got {type(args).__name__}.")
        if train_dataset is None:
            raise ValueError("`train_dataset` is None: pass traces, for example load_traces('traces.jsonl').")
        palette_vae, self._pooling = _package_module("palette_vae"), _package_module("trace_pooling")
        base = _loaded_base(model)
        is_named = isinstance(model, (str, os.PathLike))
        self._base_revision = _package_module("checkpoint_palette").loaded_commit(model) if is_named else None
        self._tokenizer = _tokenizer_of(base) if processing_class is None else processing_class
        self._embedding = base.get_input_embeddings()
        pooling: Any = _package_module("trace_images")
        self._ignored_ids = pooling.placeholder_ids(base.config)
        self._images = pooling.ImageFeatures(base, self._tokenizer) if args.merge_images else None
        self._num_segments = args.num_segments or 1

        train_traces = self._pooled(train_dataset)
        _check_domains(train_traces, palette_vae.MAX_DOMAINS)
        set_seed(args.seed)
        palette = palette_vae.PaletteVAE(
            train_traces.embeddings.shape[-1],
            args.latent_dim,
            tuple(args.hidden_sizes),
            args.decoder_type,
            num_slots=args.num_slots,
            num_decoder_layers=args.num_decoder_layers,
            num_segments=args.num_segments,
        )
        palette.embedding_mean, palette.embedding_std = train_traces.mean_and_std()
        self._untrained = copy.deepcopy(palette)
        self._frozen: tuple[int, nn.Module] | None = None
        self._base = _without_weights(base, palette.hidden_size)
        self._running: dict[str, list[torch.Tensor]] = defaultdict(list)

        super().__init__(
            model=TrainablePalette(palette),
            args=args,
            data_collator=_collate,
            train_dataset=train_traces,
            eval_dataset=self._pooled_eval(eval_dataset),
            processing_class=self._tokenizer,
            compute_metrics=PosteriorMetrics(),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # What makes `prediction_step` compute a loss and pass the model's outputs on to the metrics.
        self.label_names = ["embeddings"]

    @property
    def palette(self) -> Any:
        """The frozen [`PaletteVAE`] of the weights as they are now, on the CPU, with the training set's domains."""
        step = self.state.global_step
        if self._frozen is None or self._frozen[0] != step:
            palette = copy.deepcopy(self._untrained)
            weights = self.accelerator.unwrap_model(self.model).palette.state_dict()
            palette.load_state_dict({name: weight.cpu() for name, weight in weights.items()})
            palette.trained.fill_(step > 0)
            palette.eval()
            with torch.no_grad():
                for domain in self.train_dataset.domain_counts():
                    means = [palette.encode(chunk)[0] for chunk in self.train_dataset.chunks(domain)]
                    palette.fit_domain(domain, torch.cat(means))
            self._frozen = (step, palette)
        return self._frozen[1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Eq. 8: unexplained share of the variance + weight x KL; the weight rises to beta over the warm-up."""
        outputs = model(**inputs)
        reconstruction, kl = outputs["reconstruction"].mean(), outputs["kl"].mean()
        weight = self.args.beta
        if model.training:
            warmup_steps = math.ceil(self.args.kl_warmup_ratio * self.state.max_steps)
            weight *= min(1.0, (self.state.global_step + 1) / max(1, warmup_steps))
            self._running["reconstruction"].append(reconstruction.detach())
            self._running["kl"].append(kl.detach())
        loss = reconstruction + weight * kl
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._running:
            logs = {**logs, **{name: torch.stack(values).mean().item() for name, values in self._running.items()}}
            self._running.clear()
        super().log(logs, start_time)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As `Trainer.train`; the metrics of the whole training (and evaluation) set are logged and returned too."""
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._frozen = None  # the best weights may have been loaded without a step
        loader = self.get_eval_dataloader(self.train_dataset)
        metrics = self.evaluation_loop(loader, "Training set", metric_key_prefix="train").metrics
        metrics = {name: metrics[name] for name in ("train_reconstruction", "train_kl", "train_active_units")}
        self.log(metrics)
        self._warn(metrics)
        if self.eval_dataset is not None:
            metrics = {**metrics, **self.evaluate()}
        return output._replace(metrics={**output.metrics, **metrics})

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`; `eval_dataset` may be traces."""
        return super().evaluate(self._pooled_eval(eval_dataset), ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, with the same draws each time, none from the training's generator."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a palette-only checkpoint; within a checkpoint of the training, the weights that resuming needs."""
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        if self._base.config.name_or_path in (None, ""):
            raise ValueError(
                "A palette-only checkpoint names its base, but this base was built in memory and has no name. Save it "
                "with base.save_pretrained(folder) and pass the folder as `model`."
            )
        if self.args.should_save:
            name = "PaletteForVision2Seq" if _reads_images(self._base.config) else "PaletteForCausalLM"
            wrapper = getattr(_package_module("modeling_palette"), name)
            palette_model = wrapper.from_base(
                copy.deepcopy(self._base),
                palette=copy.deepcopy(self.palette),
                tokenizer=self._tokenizer,
                base_model_revision=self._base_revision,
                merge_images=self.args.merge_images,
            )
            palette_model.save_pretrained(output_dir or self.args.output_dir, palette_only=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Palette", revision=self.args.hub_revision)

    def _commit_function(self) -> Any:
        return _package_module("checkpoint_commit").commit_checkpoint

    def create_model_card(self, **kwargs: Any) -> None:
        """As `Trainer.create_model_card`, with the base, this trainer's tags and a section on the palette."""
        base, args = hub_id(self._base.config.name_or_path), self.args
        defaults = {"finetuned_from": base or "", "tags": list(self._tag_names)}
        super().create_model_card(**{**defaults, **kwargs})
        if not self.is_world_process_zero():
            return
        facts = {
            "trained with": f"{self._name}, `beta={args.beta:g}`, on {len(self.train_dataset):,} traces",
            **palette_facts(self.palette, base, type(self._base).__name__),
            "seed": str(args.seed),
        }
        length = self.palette.num_slots or 8
        repo, is_vision = repo_name(self, kwargs.get("model_name")), _reads_images(self._base.config)
        snippet = usage(repo, self.palette.domains, length, reads_images=is_vision)
        task = "image-text-to-text" if is_vision else "text-generation"
        complete_card(os.path.join(args.output_dir, "README.md"), facts, snippet, base, task)

    def _pooled(self, traces: TraceSource) -> PooledTraces:
        pool = partial(
            self._pooling.iter_pooled_traces,
            embedding=self._embedding,
            tokenizer=self._tokenizer,
            ignored_ids=self._ignored_ids,
            image_features=self._images,
            num_segments=self._num_segments,
        )
        return PooledTraces(load_traces(traces, keep_images=self._images is not None), pool)

    def _pooled_eval(self, traces: Any) -> Any:
        """Pooled traces, or a dictionary of them. Names of evaluation sets, None and what is pooled stay."""
        if isinstance(traces, dict):
            return {name: self._pooled_eval(part) for name, part in traces.items()}
        named_sets = getattr(self, "eval_dataset", None)
        is_name = isinstance(traces, str) and isinstance(named_sets, dict) and traces in named_sets
        return traces if traces is None or is_name or isinstance(traces, PooledTraces) else self._pooled(traces)

    def _warn(self, metrics: dict[str, float]) -> None:
        """Warn by name if the latent says too little or too much."""
        kl, active_units, beta = metrics["train_kl"], metrics["train_active_units"], self.args.beta
        if active_units == 0 or kl < MIN_KL:
            warnings.warn(
                f"Posterior collapse: the latent carries {kl:.2f} nats with {active_units} of {self.args.latent_dim} "
                f"units active, so draws will hardly differ. Lower `beta` (now {beta:g}), raise `kl_warmup_ratio`, or "
                "train longer.",
                PosteriorCollapseWarning,
                stacklevel=3,
            )
        elif kl > MAX_KL:
            warnings.warn(
                f"The latent carries too much: {kl:.1f} nats (more than {MAX_KL:g}). Posteriors are then far from the "
                "prior: a model that learns to read such latents loses accuracy when they are drawn. Raise `beta` "
                f"(now {beta:g}) or lower `latent_dim` (now {self.args.latent_dim}).",
                LatentOverloadWarning,
                stacklevel=3,
            )


def _collate(embeddings: Any) -> dict[str, torch.Tensor]:
    return {"embeddings": torch.stack(tuple(embeddings))}


def _package_module(name: str) -> Any:
    # Not a plain import: this file also travels with checkpoints, where the package may be absent.
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "PaletteVAETrainer needs the reasoning-palette package: `pip install reasoning-palette[train]`."
        ) from error


def _loaded_base(model: Any) -> PreTrainedModel:
    if isinstance(model, (str, os.PathLike)):
        loader = (
            AutoModelForImageTextToText if _reads_images(AutoConfig.from_pretrained(model)) else AutoModelForCausalLM
        )
        return loader.from_pretrained(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"`model` must be a transformers model, a folder or a Hub id, got {type(model).__name__}.")
    if getattr(model, "palette", None) is not None:
        raise ValueError("`model` has a palette already. Pass its base to train another one.")
    return model


def _reads_images(config: Any) -> bool:
    return _package_module("base_kinds").reads_images(type(config))


def _tokenizer_of(base: PreTrainedModel) -> Any:
    name = base.config.name_or_path
    try:
        return (AutoProcessor if _reads_images(base.config) else AutoTokenizer).from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"There is no tokenizer for the base where it came from ({name!r}). Pass it as `processing_class`."
        ) from error


def _without_weights(base: PreTrainedModel, hidden_size: int) -> PreTrainedModel:
    """The base's class and configs on the meta device: what saving a palette-only checkpoint needs of it."""
    with torch.device("meta"):
        empty = type(base)(copy.deepcopy(base.config))
    empty.generation_config = copy.deepcopy(base.generation_config)
    empty.set_input_embeddings(nn.Embedding(1, hidden_size))  # on the CPU: a palette goes where the embedding is
    return empty


def _check_domains(traces: PooledTraces, max_domains: int) -> None:
    """What would keep a domain's Gaussian from being fitted, found before the training instead of after it."""
    counts = traces.domain_counts()
    if len(counts) > max_domains:
        raise ValueError(
            f"`train_dataset` has {len(counts)} domains in its `domain` column, a palette has room for {max_domains}. "
            "Merge some, or remove the column and fit domains later with add_domain."
        )
    single = [domain for domain, count in counts.items() if count < 2]
    if single:
        raise ValueError(
            f"The domains {single} of `train_dataset` have one trace each, which has no covariance. Add traces, or "
            "set their `domain` to None."
        )
    constant = [domain for domain in counts if traces.is_constant(domain)]
    if constant:
        raise ValueError(
            f"All traces of the domains {constant} of `train_dataset` are the same, so they have no covariance. Add "
            "traces that differ, or set their `domain` to None."
        )
