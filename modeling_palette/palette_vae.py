"""The palette itself: a frozen VAE over pooled trace embeddings, with one Gaussian per domain.

Everything here is a *buffer*: optimisers, LoRA's `"all-linear"`, ZeRO and quantisers pass the palette by. Everything
stays in float32, whatever dtype the base runs in: a bfloat16 palette would change the meaning of every saved code.
Training (eq. 8) happens in `trainers/palette_vae_trainer.py`.

Shapes: N sequences, H hidden size of the base, Z latent dimension, S slots of a latent, G segments of a trace, D
sources fitted so far.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .buffer_layers import BufferLinear, buffer_mlp
from .latent_codes import NUM_QUANTILES, normal_quantile_table
from .slot_decoder import SlotTransformer

DECODER_TYPES = ("mlp", "gpt")
# The paper's 8 slots; the depth of its decoder is not published.
DEFAULT_NUM_SLOTS, DEFAULT_DECODER_LAYERS = 8, 2
# One of the 31 sources that fit in a latent id is the prior N(0, I).
MAX_DOMAINS = 30
# The bounds of `DiagonalGaussianDistribution` in diffusers (the VAE of Stable Diffusion): exp() of them is finite.
LOGVAR_BOUNDS = (-30.0, 20.0)
_FITTING = threading.Lock()


class PaletteVAE(nn.Module):
    r"""
    Encoder, decoder and domain Gaussians of a palette (METHOD eq. 6, 7; arXiv 2512.17206).

    Embeddings are standardised inside: `encode` subtracts `embedding_mean` and divides by `embedding_std`, `decode`
    does the inverse, so both speak the space of the base's input embedding *output*. A fresh palette has a random
    decoder whose outputs have mean 0 and standard deviation 1 under the prior.

    Args:
        hidden_size (`int`):
            H, the width of the base's input embedding.
        latent_dim (`int`, defaults to 64):
            Z, the size of a latent.
        hidden_sizes (`Sequence[int]`, defaults to `(512,)`):
            Widths of the encoder's hidden layers, from the input to the latent. The `"mlp"` decoder mirrors them.
            Empty: both are linear.
        decoder_type (`str`, defaults to `"mlp"`):
            The decoder's architecture. `"mlp"` makes one row of a latent, so that a prefix of L rows takes L latents
            (eq. 7, 9). `"gpt"` makes a whole prefix of one latent: its S slots go through a causal transformer
            ([`SlotTransformer`], the paper's vision-language variant: `latent_dim=1024`, `num_slots=8`).
        num_domains (`int`, defaults to 0):
            D, the number of rows of `domain_means` and `domain_cholesky`, as a checkpoint to be loaded has them.
        num_slots (`int`, *optional*):
            S, for `"gpt"` alone: the most rows that a prefix can have; Z is a multiple of it. 8 by default.
        num_decoder_layers (`int`, *optional*):
            Transformer blocks, for `"gpt"` alone. 2 by default.
        num_segments (`int`, *optional*):
            G, for `"gpt"` alone: a trace is pooled in G parts, each of which is encoded to S / G slots, and the mean
            of the rows of these slots decodes it. S by default: a row for each part. 1: one mean for all rows, as for
            `"mlp"`.

    Attributes:
        domains (`dict[str, dict[str, int]]`):
            Name -> `{"source": number of its Gaussian (1 is the first row), "count": number of latents it was fitted
            on}`. Not part of the state dict: the model's config stores it.
        trained (`torch.Tensor`): Boolean scalar, False while the decoder is random.
        embedding_mean (`torch.Tensor`): (H,), mean of the pooled training embeddings.
        embedding_std (`torch.Tensor`): (H,), their standard deviation.
        domain_means (`torch.Tensor`): (D, Z), one row for each source ever fitted.
        domain_cholesky (`torch.Tensor`): (D, Z, Z), lower Cholesky factors of the covariances.
        normal_quantiles (`torch.Tensor`): The table from which latent codes are turned into normal draws.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is out of range, `decoder_type` is not one of `DECODER_TYPES`, a setting of `"gpt"` is
            given to another decoder, or S does not divide Z, or G does not divide S.
    """

    def __init__(
        self,
        hidden_size: int,
        latent_dim: int = 64,
        hidden_sizes: Sequence[int] = (512,),
        decoder_type: str = "mlp",
        num_domains: int = 0,
        num_slots: int | None = None,
        num_decoder_layers: int | None = None,
        num_segments: int | None = None,
    ) -> None:
        super().__init__()
        check_size("hidden_size", hidden_size)
        check_size("latent_dim", latent_dim)
        if isinstance(hidden_sizes, (str, bytes)) or not isinstance(hidden_sizes, Sequence):
            raise TypeError(f"`hidden_sizes` must be a sequence of layer widths such as (512,), got {hidden_sizes!r}.")
        for width in hidden_sizes:
            check_size("hidden_sizes", width)
        slots = SlotSettings.resolve(
            decoder_type,
            latent_dim,
            num_slots=num_slots,
            num_decoder_layers=num_decoder_layers,
            num_segments=num_segments,
        )
        check_size("num_domains", num_domains, minimum=0, maximum=MAX_DOMAINS)

        self.hidden_size = hidden_size
        self.latent_dim = latent_dim
        self.hidden_sizes = tuple(hidden_sizes)
        self.decoder_type = decoder_type
        self.num_slots = slots.num_slots
        self.num_decoder_layers = slots.num_decoder_layers
        self.num_segments = slots.num_segments
        self.domains: dict[str, dict[str, int]] = {}

        self.encoder = buffer_mlp([hidden_size, *hidden_sizes, 2 * latent_dim // (self.num_segments or 1)])
        self.decoder: nn.Sequential
        if self.num_slots is None or self.num_decoder_layers is None:
            self.decoder = buffer_mlp([latent_dim, *reversed(self.hidden_sizes), hidden_size])
        else:
            body = SlotTransformer(latent_dim, self.num_slots, self.num_decoder_layers)
            self.decoder = nn.Sequential(body, BufferLinear(latent_dim // self.num_slots, hidden_size))

        self.trained: torch.Tensor
        self.embedding_mean: torch.Tensor
        self.embedding_std: torch.Tensor
        self.domain_means: torch.Tensor
        self.domain_cholesky: torch.Tensor
        self.normal_quantiles: torch.Tensor
        self.register_buffer("trained", torch.tensor(False))
        self.register_buffer("embedding_mean", torch.empty(hidden_size, dtype=torch.float32))
        self.register_buffer("embedding_std", torch.empty(hidden_size, dtype=torch.float32))
        self.register_buffer("domain_means", torch.empty(num_domains, latent_dim, dtype=torch.float32))
        self.register_buffer("domain_cholesky", torch.empty(num_domains, latent_dim, latent_dim, dtype=torch.float32))
        self.register_buffer("normal_quantiles", torch.empty(NUM_QUANTILES, dtype=torch.float32))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """First values of the buffers beside the layers', for transformers' `_init_weights` too."""
        init.zeros_(self.trained)
        init.zeros_(self.embedding_mean)
        init.ones_(self.embedding_std)
        init.zeros_(self.domain_means)
        init.copy_(self.domain_cholesky, torch.eye(self.latent_dim).expand_as(self.domain_cholesky))
        init.copy_(self.normal_quantiles, normal_quantile_table())

    def encode(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        The posterior q(z|h) of pooled trace embeddings (eq. 6).

        Args:
            embeddings (`torch.Tensor` of shape (..., H), or (..., G, H) where G is more than 1):
                Mean input embeddings of traces, or of their segments, not standardised.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: mean and log-variance, float32, both of shape (..., Z).

        Raises:
            ValueError: If the last dimensions are not these.
        """
        num_segments = self.num_segments or 1
        expected = (self.hidden_size,) if num_segments == 1 else (num_segments, self.hidden_size)
        if embeddings.shape[-len(expected) :] != expected:
            raise ValueError(
                f"`embeddings` must have shape (..., {', '.join(map(str, expected))}), the palette's "
                f"{'hidden size' if num_segments == 1 else 'segments and hidden size'}, got "
                f"{tuple(embeddings.shape)}. A palette only fits bases of the hidden size that it was trained on."
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            standardised = (embeddings.float() - self.embedding_mean) / self.embedding_std
            mean, logvar = self.encoder(standardised).chunk(2, dim=-1)
        if num_segments > 1:
            mean, logvar = mean.flatten(-2), logvar.flatten(-2)
        return mean, logvar.clamp(*LOGVAR_BOUNDS)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        r"""
        Prefix embeddings of latents (eq. 7).

        Args:
            latents (`torch.Tensor` of shape (..., Z)): Draws of z.

        Returns:
            `torch.Tensor`: float32, shape (..., H), or (..., S, H) with the `"gpt"` decoder; in the space of the input
            embedding's output.

        Raises:
            ValueError: If the last dimension is not Z.
        """
        self._check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self.decoder(latents.float()) * self.embedding_std + self.embedding_mean

    def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
        r"""
        What the latents say of the embeddings that they were encoded from; the training compares the two (eq. 8).

        Args:
            latents (`torch.Tensor` of shape (..., Z)): Draws of z.

        Returns:
            `torch.Tensor`: float32, of the shape that `encode` takes: `decode`'s rows, or the means of those that
            belong to a segment.
        """
        rows = self.decode(latents)
        if self.num_segments is None:
            return rows
        means = rows.unflatten(-2, (self.num_segments, -1)).mean(dim=-2)
        return means.squeeze(-2) if self.num_segments == 1 else means

    def decode_rows(self, latents: torch.Tensor, members: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        r"""
        Single rows of the prefixes that the `"gpt"` decoder makes of latents, each of which is decoded once.

        Args:
            latents (`torch.Tensor` of shape (N, Z)): Draws of z.
            members (`torch.Tensor` of shape (M,), int64): Which latent each row belongs to.
            slots (`torch.Tensor` of shape (M,), int64): Which of its S rows it is.

        Returns:
            `torch.Tensor`: float32, shape (M, H): `decode(latents)[members, slots]`.
        """
        self._check_latents(latents)
        body, head = self.decoder
        with torch.autocast(latents.device.type, enabled=False):
            return head(body(latents.float())[members, slots]) * self.embedding_std + self.embedding_mean

    def _check_latents(self, latents: torch.Tensor) -> None:
        if latents.shape[-1:] != (self.latent_dim,):
            raise ValueError(
                f"`latents` must have shape (..., {self.latent_dim}), the palette's latent_dim, got "
                f"{tuple(latents.shape)}."
            )

    @staticmethod
    def sample_posterior(mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        r"""
        The reparameterised draw z = mean + exp(logvar / 2) * noise.

        Args:
            mean (`torch.Tensor` of shape (..., Z)): Posterior means.
            logvar (`torch.Tensor` of shape (..., Z)): Posterior log-variances.
            noise (`torch.Tensor`): Standard normal draws; any shape that broadcasts with `mean`, so that one posterior
                can give several latents.

        Returns:
            `torch.Tensor`: The latents.
        """
        return mean + torch.exp(0.5 * logvar) * noise

    @torch.no_grad()
    def fit_domain(self, name: str, latents: torch.Tensor) -> int:
        r"""
        Fit the Gaussian of a domain to latents of its traces ("domain steering" of the paper).

        The covariance is full and shrunk towards a multiple of the identity by the Oracle Approximating Shrinkage of
        Chen et al. (2010), which needs no setting and gives a usable covariance from a handful of traces. A name that
        was fitted before gets a new source number; its old row stays, so that old codes keep their meaning.

        Args:
            name (`str`): The domain's name.
            latents (`torch.Tensor` of shape (N, Z)):
                Latents of N >= 2 traces: their posterior means. (Draws from the posteriors give a wider Gaussian,
                whose own draws hold the domain less well: examples/benchmarks/vae_beta.json.)

        Returns:
            `int`: The source number of the new Gaussian, 1 or more.

        Raises:
            ValueError: If `name` is empty or not a string, if a shape is wrong, if N < 2, if a value is not finite, if
                the latents are degenerate (no spread), or if all 30 sources are taken.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"`name` of a domain must be a non-empty string, got {name!r}.")
        samples = self._checked_latents(latents, name)
        if samples.shape[0] < 2:
            raise ValueError(
                f"Domain {name!r} needs latents of at least 2 traces to have a covariance, got {samples.shape[0]}. "
                "A few hundred make a good Gaussian."
            )
        mean = samples.mean(dim=0)
        covariance = shrunk_covariance(samples)
        cholesky, failed = torch.linalg.cholesky_ex(covariance)
        # Equal float32 latents leave a rounding residue whose square would pass as a covariance.
        rounding = torch.finfo(torch.float32).eps * samples.abs().max()
        if failed or covariance.diagonal().mean() <= rounding**2:
            raise ValueError(
                f"The {samples.shape[0]} latents of domain {name!r} are degenerate: their covariance has no Cholesky "
                f"factor (largest variance {covariance.diagonal().max().item():.3g}). Are the traces all the "
                "same? Give traces that differ."
            )
        with _FITTING:  # two threads must not take one source
            num_sources = self.domain_means.shape[0]
            if num_sources == MAX_DOMAINS:
                raise ValueError(
                    f"Cannot fit domain {name!r}: all {MAX_DOMAINS} sources are taken. A refit takes a new source "
                    "too, so that old codes keep their meaning. Start from a palette with fewer domains."
                )
            device = self.domain_means.device
            # the name last and the means behind the factors: whoever reads meanwhile finds all that a source needs
            self.domain_cholesky = torch.cat([self.domain_cholesky, cholesky[None].to(device, torch.float32)])
            self.domain_means = torch.cat([self.domain_means, mean[None].to(device, torch.float32)])
            self.domains = {**self.domains, name: {"source": num_sources + 1, "count": samples.shape[0]}}
            return num_sources + 1

    def _checked_latents(self, latents: torch.Tensor, name: str) -> torch.Tensor:
        """The latents in float64 on the CPU, where a fit is the same on every machine, if (N, Z) and finite."""
        if not isinstance(latents, torch.Tensor) or latents.dim() != 2 or latents.shape[1] != self.latent_dim:
            shape = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(
                f"`latents` of domain {name!r} must be a tensor of shape (N, {self.latent_dim}), got {shape}."
            )
        finite = latents.isfinite().all(dim=1)
        if not bool(finite.all()):
            rows = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"`latents` of domain {name!r} must be finite: {len(rows)} of {len(latents)} rows hold NaN or "
                f"infinity, the first is row {rows[0]}."
            )
        return latents.detach().to("cpu", torch.float64)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PaletteVAE:
        # `.to(device)`, `.to_empty()` and `.share_memory()` all come through here and must work; `.half()`,
        # `.double()` and `.to(dtype)` must not reach the values: the palette's meaning is its float32 numbers.
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, latent_dim={self.latent_dim}, domains={list(self.domains)}"


def shrunk_covariance(samples: torch.Tensor) -> torch.Tensor:
    r"""
    Oracle Approximating Shrinkage of the empirical covariance (Chen, Wiesel, Eldar and Hero, 2010, eq. 23).

    Args:
        samples (`torch.Tensor` of shape (N, Z)): Float samples, N >= 2.

    Returns:
        `torch.Tensor`: (Z, Z), `(1 - s) * S + s * (trace(S) / Z) * I` with S the empirical covariance (divided by N)
        and s the shrinkage in [0, 1].
    """
    num_samples, dim = samples.shape
    centred = samples - samples.mean(dim=0)
    covariance = centred.T @ centred / num_samples
    mean_variance = covariance.trace() / dim
    mean_square = covariance.square().mean()
    numerator = mean_square + mean_variance**2
    denominator = (num_samples + 1) * (mean_square - mean_variance**2 / dim)
    shrinkage = min(1.0, (numerator / denominator).item()) if denominator > 0 else 1.0
    identity = torch.eye(dim, dtype=samples.dtype, device=samples.device)
    return (1.0 - shrinkage) * covariance + shrinkage * mean_variance * identity


def check_size(argument: str, value: int, minimum: int = 1, maximum: float = math.inf) -> None:
    """
    Raises:
        TypeError: for anything but an integer.
        ValueError: for an integer out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` takes integers, got {value!r}.")
    if not minimum <= value <= maximum:
        allowed = f"at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise ValueError(f"`{argument}` must be {allowed}, got {value}.")


@dataclass(frozen=True)
class SlotSettings:
    """
    The settings of `decoder_type="gpt"`, with their defaults filled in; all `None` for other decoders.

    Args:
        num_slots (`int`, *optional*): S.
        num_decoder_layers (`int`, *optional*): Transformer blocks.
        num_segments (`int`, *optional*): G.
    """

    num_slots: int | None = None
    num_decoder_layers: int | None = None
    num_segments: int | None = None

    @classmethod
    def resolve(cls, decoder_type: str, latent_dim: int | None, **given: int | None) -> SlotSettings:
        """
        Raises:
            TypeError: for anything but integers.
            ValueError: for an unknown decoder, settings of `"gpt"` with another one, a Z that S does not divide, and
                an S that G does not divide.
        """
        if decoder_type not in DECODER_TYPES:
            raise ValueError(f"`decoder_type` must be one of {DECODER_TYPES}, got {decoder_type!r}.")
        if decoder_type != "gpt":
            for name, value in given.items():
                if value is not None:
                    raise ValueError(
                        f"`{name}`={value!r} is for `decoder_type`='gpt', got {decoder_type!r}, which has none. Drop "
                        "one of them."
                    )
            return cls()
        settings = {name: value for name, value in given.items() if value is not None}
        settings = {"num_slots": DEFAULT_NUM_SLOTS, "num_decoder_layers": DEFAULT_DECODER_LAYERS, **settings}
        settings.setdefault("num_segments", settings["num_slots"])
        for name, value in settings.items():
            check_size(name, value)
        num_slots, num_segments = settings["num_slots"], settings["num_segments"]
        if not isinstance(latent_dim, int) or latent_dim % num_slots:
            raise ValueError(
                f"`latent_dim`={latent_dim} cannot be cut into `num_slots`={num_slots} slots of one width. Give a "
                "multiple, such as the paper's 1024 for 8."
            )
        if num_slots % num_segments:
            raise ValueError(
                f"`num_slots`={num_slots} cannot be shared out among `num_segments`={num_segments}. Give a divisor, "
                "such as the number of slots, or 1."
            )
        return cls(**settings)
