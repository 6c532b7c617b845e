"""What is known of a base: the entries of `bases.yaml`, and the empty model that they describe."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

Result = TypeVar("Result")

BASES_FILE = Path(__file__).parent.parent / "bases.yaml"


@dataclass
class BaseFacts:
    """One entry of `bases.yaml`; see there."""

    name: str
    id: str
    revision: str
    licence: str
    gated: bool
    parameters: int
    model_type: str
    config: dict[str, Any]
    vision: bool = False  # whether its presets are those of images
    settings: dict[str, list[Any]] = field(default_factory=dict)  # of its own, as in `stages.yaml`; not for the VAE
    vae_settings: dict[str, list[Any]] = field(default_factory=dict)  # the same for the VAE

    def build_config(self) -> PreTrainedConfig:
        """The base's config, as far as sizes go."""
        return AutoConfig.for_model(self.model_type, **self.config)


def load_bases() -> dict[str, BaseFacts]:
    """All bases by their short name, in the order of the file."""
    entries = yaml.safe_load(BASES_FILE.read_text())
    return {name: BaseFacts(name=name, **entry) for name, entry in entries.items()}


def once_per_config(function: Callable[..., Result]) -> Callable[..., Result]:
    """Computes a function of a config and plain values once for the same ones: a table asks often for the same."""
    results: dict[tuple[Any, ...], Result] = {}

    @functools.wraps(function)
    def remembered(config: PreTrainedConfig, *values: Any) -> Result:
        key = (config.to_json_string(use_diff=False), *values)
        if key not in results:
            results[key] = function(config, *values)
        return results[key]

    return remembered


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config, on the default device: none of it is loaded."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    model = model_class(config)
    model.tie_weights()
    return model


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of a config's model, a tied table once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in empty_model(config).parameters())


@dataclass
class Parameters:
    """Numbers of parameters."""

    total: int
    trained: int
    """Those that text gives a gradient to: all but a vision tower's."""
    layers_total: int
    """Those of the decoder's layers."""
    layer: int
    """Those of its largest layer."""
    linear: int
    """Weights of the layers' matrix products: what a token's forward costs two operations each."""
    head: int
    """Weights of the LM head, tied or not."""
    widest: int
    """The widest output of a product in a layer."""


@once_per_config
def count_parts(config: PreTrainedConfig) -> Parameters:
    """The parameters of a config's model by where they are."""
    with torch.device("meta"):
        model = empty_model(config)
    text = getattr(model.base_model, "language_model", model.base_model)
    linears = [module for module in text.layers.modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings().weight
    trained = {id(parameter): parameter for parameter in [*text.parameters(), head]}
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in text.layers]
    return Parameters(
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained.values()),
        layers_total=sum(sizes),
        layer=max(sizes),
        linear=sum(module.weight.numel() for module in linears),
        head=head.numel(),
        widest=max(module.out_features for module in linears),
    )
