"""The base of a palette model on its own, with a larger vocabulary or wider layers: a stock model to be saved, and the
folder that it is saved to."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def unused_folder(folder: str | Path) -> Path:
    """
    The whole path of a folder to export to.

    Raises:
        ValueError: if it is in use.
    """
    folder = Path(folder).resolve()  # "." has no name, and a link cannot be replaced by a folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder`={str(folder)!r} exists and is not empty. Give a new one.")
    return folder


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write to in this block. At its end it becomes `folder`; where the block fails, nothing is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def base_tensors(model: Any) -> dict[str, torch.Tensor]:
    """
    The parameters and buffers of a palette model's base, by their stock names; shared, not copied.

    Args:
        model ([`PaletteForCausalLM`]): The palette model.

    Raises:
        ValueError: if its weights are quantised, offloaded or wrapped by adapters, which no stock checkpoint of the
            base's class holds.
    """
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items() if not name.startswith("palette.")}
    if any(".base_layer." in name or ".lora_" in name or "modules_to_save" in name for name in tensors):
        raise ValueError(
            "`model` holds adapters, which a stock checkpoint does not. Merge them first with "
            "`peft_model.merge_and_unload()`."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("`model` is quantised. Load it with its full weights, export, and quantise the result.")
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError("Some of the weights of `model` are offloaded. Load it on one device to export it.")
    return tensors


def rebuilt_base(model: Any, config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """
    A model of the base's own class with another config, to be saved: it holds `tensors`, which it shares.

    Args:
        model ([`PaletteForCausalLM`]): The palette model.
        config (`PreTrainedConfig`): Config of the new model.
        tensors (`dict[str, torch.Tensor]`): All that its state dict names.

    Raises:
        ValueError: if they do not fit.
    """
    base = empty_base(model, config)
    try:
        base.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:  # sizes of another meaning (Moshi's embedding has one row more than its head)
        raise ValueError(
            f"{type(base).__name__} cannot be given a larger vocabulary and a head of its own: {error}. Serve this "
            "palette with the checkpoint's own code."
        ) from error
    base.generation_config = copy.deepcopy(model.generation_config)
    return base


def empty_base(model: Any, config: Any) -> Any:
    """A model of the base's own class, whose weights are not set."""
    with torch.device("meta"):
        return type(model).base_class(config)


def logits_agree(found: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> bool:
    """
    Whether two models compute the same function, up to what their dtype rounds.

    In full precision no logit may differ by more than 1e-4 of the largest. In half precision single logits differ by
    what the order of sums makes of them, so the root mean square counts: at most a tenth of the logits' spread, where
    rounding gives 1 to 3 hundredths and another prefix, or other positions, the order of 1.
    """
    if found.shape != reference.shape:
        return False
    difference = found.float() - reference.float()
    if dtype in (torch.float32, torch.float64):
        return float(difference.abs().max()) <= 1e-4 * max(1.0, float(reference.abs().max()))
    return float(difference.square().mean().sqrt()) <= 0.1 * float(reference.float().std())


def padded(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`tensor` with zeros behind it, along each dimension in which `shape` is larger."""
    if tensor.shape == shape:
        return tensor
    larger = tensor.new_zeros(shape)
    larger[tuple(slice(size) for size in tensor.shape)] = tensor
    return larger


def embedding_scale(embedding: Any) -> float:
    """
    What an input embedding multiplies its rows by (Gemma: the square root of the width).

    Raises:
        ValueError: if its output is not its rows times one number.
    """
    weight = embedding.weight
    rows = weight.detach().float()
    ids = torch.linspace(0, len(rows) - 1, min(len(rows), 64), device=weight.device).long().unique()
    with torch.no_grad():
        output = embedding(ids).float()
    rows = rows[ids]
    scale = float((output * rows).sum() / rows.square().sum().clamp(min=1e-30))
    if not torch.allclose(output, scale * rows, rtol=1e-2, atol=1e-2 * float(output.abs().max())):
        raise ValueError(
            f"The input embedding ({type(embedding).__name__}) does more than look up rows and scale them, so a "
            "latent cannot be written as a row of it. Serve this palette with the checkpoint's own code."
        )
    declared = getattr(embedding, "embed_scale", None)
    return float(declared) if declared is not None and abs(float(declared) / scale - 1) < 1e-2 else scale
