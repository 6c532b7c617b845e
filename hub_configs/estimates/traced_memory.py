"""What a model's own code keeps in memory, read off it by running it on tensors without storage.

Attention variants, norms and mixed precision differ by family, so no formula per layer is written down here: two and
three layers of the real config are run under `FakeTensorMode`, which allocates nothing, and what a further layer adds
is counted.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from estimates.base_facts import empty_model, once_per_config
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


@dataclass
class LayerMemory:
    """Bytes that decoder layers add."""

    saved: int
    """What autograd keeps of one layer until its backward, copies of weights in the compute dtype included."""
    checkpoint: int
    """What is kept of one layer under gradient checkpointing: its input."""
    layers: int
    """Decoder layers of the model."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the decoder."""
    return config.get_text_config(decoder=True)


@once_per_config
def layer_memory(config: PreTrainedConfig, batch: int, length: int, bf16: bool) -> LayerMemory:
    """What training keeps of each layer for `batch` rows of `length` tokens, with float32 weights."""
    layers = text_config(config).num_hidden_layers
    sizes = [_saved_for_backward(with_layers(config, count), batch, length, bf16) for count in (2, 3)]
    hidden = batch * length * text_config(config).hidden_size
    return LayerMemory(sizes[1] - sizes[0], 4 * hidden, layers)  # the residual stream stays float32 under autocast


def cache_bytes(config: PreTrainedConfig, batch: int, length: int, bf16: bool) -> int:
    """Bytes of the KV cache after `length` tokens, in the dtypes and with the windows that the model's code uses."""
    return batch * _cache_of_one_row(config, length, bf16)


@once_per_config
def _cache_of_one_row(config: PreTrainedConfig, length: int, bf16: bool) -> int:
    def run(model: PreTrainedModel, ids: torch.Tensor) -> int:
        with torch.no_grad():
            outputs = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache = outputs["cache" if "cache" in outputs else "past_key_values"]  # the newer name, or the older
        return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))

    # Whole periods of Gemma's and SmolLM3's layer patterns (6 and 4) by one run, what is left over by another.
    layers = text_config(config).num_hidden_layers
    period = 12 if layers > 24 else layers
    whole, rest = divmod(layers, period)
    total = whole * _run(with_layers(config, period), 1, length, bf16, run)
    return total + (_run(with_layers(config, rest), 1, length, bf16, run) if rest else 0)


def with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The config with its first `count` decoder layers, and without the vision tower's."""
    config = copy.deepcopy(config)
    text = text_config(config)
    text.num_hidden_layers = count
    for name in ("layer_types", "no_rope_layers"):
        if getattr(text, name, None):
            setattr(text, name, getattr(text, name)[:count])
    if text is not config:
        config.vision_config.num_hidden_layers = 1
    return config


def _saved_for_backward(config: PreTrainedConfig, batch: int, length: int, bf16: bool) -> int:
    def run(model: PreTrainedModel, ids: torch.Tensor) -> int:
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                saved[storage._cdata] = storage  # kept, so that the address is not used again
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            inputs = {"token_type_ids": torch.zeros_like(ids)} if config.model_type == "gemma3" else {}
            model.base_model(input_ids=ids, use_cache=False, **inputs)
        return sum(storage.nbytes() for storage in saved.values())

    return _run(config, batch, length, bf16, run)


def _run(
    config: PreTrainedConfig,
    batch: int,
    length: int,
    bf16: bool,
    run: Callable[[PreTrainedModel, torch.Tensor], int],
) -> int:
    with FakeTensorMode(), _quiet(), no_init_weights():  # first values need data
        model = empty_model(config)
        ids = torch.zeros(batch, length, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return run(model, ids)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
