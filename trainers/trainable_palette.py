"""The palette with parameters in place of buffers, and the figures its training is watched by (METHOD eq. 8)."""

from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction

# A unit is active if its posterior mean varies by more than this over the data (Burda et al., 2016, section 5.2).
ACTIVE_UNIT_VARIANCE = 0.01


# Training starts near "posterior = prior, reconstruction = mean": with full-scale outputs the first half of the steps
# goes into undoing them (measured on GSM8K, MBPP and CommonsenseQA traces).
INITIAL_OUTPUT_SCALE = 0.1


class TrainablePalette(nn.Module):
    """
    A palette whose encoder and decoder weights are parameters under their old names.

    Args:
        palette (`PaletteVAE`): Converted in place.
    """

    def __init__(self, palette: Any) -> None:
        super().__init__()
        self.palette = palette
        for network in (palette.encoder, palette.decoder):
            for module in network.modules():
                for name, buffer in list(module.named_buffers(recurse=False)):
                    delattr(module, name)
                    module.register_parameter(name, nn.Parameter(buffer))
            with torch.no_grad():
                network[-1].weight.mul_(INITIAL_OUTPUT_SCALE)

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The terms of eq. 8 for embeddings (B, H) or (B, G, H), with one posterior draw each.

        Returns:
            `dict[str, torch.Tensor]`: posterior `mean` (B, Z); `reconstruction` (B,), squared error per standardised
            dimension; `kl` (B,), KL(q(z|h) || N(0, I)) in nats.
        """
        palette = self.palette
        mean, logvar = palette.encode(embeddings)
        decoded = palette.reconstruct(palette.sample_posterior(mean, logvar, torch.randn_like(mean)))
        error = (embeddings - decoded) / palette.embedding_std
        return {
            "mean": mean,
            "reconstruction": error.square().flatten(1).mean(dim=-1),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=-1),
        }


class PosteriorMetrics:
    """Reconstruction, KL and active units of a set, summed up batch by batch as `batch_eval_metrics` wants it."""

    def __init__(self) -> None:
        self._batches: list[torch.Tensor] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        mean, reconstruction, kl = (values.double() for values in prediction.predictions)
        count = torch.full_like(kl, 1.0)
        columns = torch.cat([torch.stack([count, reconstruction, kl], dim=1), mean, mean.square()], dim=1)
        self._batches.append(columns.sum(dim=0).cpu())
        if not compute_result:
            return {}
        sums = torch.stack(self._batches).sum(dim=0)
        self._batches.clear()
        averages = sums[1:] / sums[0]
        mean_average, square_average = averages[2:].chunk(2)
        variance = square_average - mean_average.square()
        return {
            "reconstruction": averages[0].item(),
            "kl": averages[1].item(),
            "active_units": int((variance > ACTIVE_UNIT_VARIANCE).sum()),
        }
