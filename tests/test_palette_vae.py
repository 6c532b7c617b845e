"""The palette: encoder, decoder, float32 buffers, domain Gaussians (METHOD eq. 6, 7 and domain steering)."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from reasoning_palette.modeling_palette.buffer_layers import GELU_SECOND_MOMENT
from reasoning_palette.modeling_palette.palette_vae import MAX_DOMAINS, PaletteVAE, shrunk_covariance

HIDDEN_SIZE, LATENT_DIM = 12, 4


@pytest.fixture
def palette():
    torch.manual_seed(0)
    palette = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, hidden_sizes=(16, 8))
    palette.embedding_mean.normal_()
    palette.embedding_std.uniform_(0.5, 2.0)
    return palette


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def numpy_mlp(layers, x):
    for index, layer in enumerate(layers):
        x = x @ layer.weight.double().numpy().T + layer.bias.double().numpy()
        x = gelu(x) if index < len(layers) - 1 else x
    return x


def linear_layers(sequential):
    return [layer for layer in sequential if hasattr(layer, "weight")]


class TestEncodeDecode:
    def test_encode_is_an_mlp_of_the_standardised_embedding(self, palette):
        embeddings = torch.randn(5, HIDDEN_SIZE)
        for layer in linear_layers(palette.encoder):
            layer.bias.normal_()
        standardised = (embeddings.double() - palette.embedding_mean.double()) / palette.embedding_std.double()
        expected = numpy_mlp(linear_layers(palette.encoder), standardised.numpy())
        mean, logvar = palette.encode(embeddings)
        np.testing.assert_allclose(mean.numpy(), expected[:, :LATENT_DIM], atol=1e-5)
        np.testing.assert_allclose(logvar.numpy(), expected[:, LATENT_DIM:], atol=1e-5)

    def test_decode_mirrors_the_encoder_and_undoes_the_standardisation(self, palette):
        latents = torch.randn(2, 3, LATENT_DIM)
        layers = linear_layers(palette.decoder)
        assert [tuple(layer.weight.shape) for layer in layers] == [(8, LATENT_DIM), (16, 8), (HIDDEN_SIZE, 16)]
        expected = numpy_mlp(layers, latents.double().numpy())
        expected = expected * palette.embedding_std.double().numpy() + palette.embedding_mean.double().numpy()
        decoded = palette.decode(latents)
        assert decoded.shape == (2, 3, HIDDEN_SIZE)
        np.testing.assert_allclose(decoded.numpy(), expected, atol=1e-5)

    def test_logvar_is_bounded(self, palette):
        _, logvar = palette.encode(1e6 * torch.randn(5, HIDDEN_SIZE))
        assert logvar.min() >= -30.0 and logvar.max() <= 20.0 and logvar.exp().isfinite().all()

    def test_sample_posterior(self, palette):
        mean, logvar, noise = torch.randn(3, 2, LATENT_DIM).unbind()
        draw = palette.sample_posterior(mean, logvar, noise)
        np.testing.assert_allclose(draw, mean.numpy() + np.exp(logvar.numpy() / 2) * noise.numpy(), rtol=1e-6)
        assert palette.sample_posterior(mean, logvar, torch.randn(7, 2, LATENT_DIM)).shape == (7, 2, LATENT_DIM)

    def test_no_hidden_layers_is_linear(self):
        palette = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, hidden_sizes=())
        a, b = torch.randn(2, LATENT_DIM)
        torch.testing.assert_close(palette.decode(a + b), palette.decode(a) + palette.decode(b))

    @pytest.mark.parametrize("hidden_sizes", [(), (512,), (256, 128)])
    def test_a_fresh_decoder_has_unit_scale(self, hidden_sizes):
        torch.manual_seed(0)
        palette = PaletteVAE(256, 64, hidden_sizes)
        decoded = palette.decode(torch.randn(2000, 64))
        assert decoded.std().item() == pytest.approx(1.0, abs=0.1)
        assert decoded.mean().item() == pytest.approx(0.0, abs=0.1)
        assert not palette.trained

    def test_gelu_second_moment(self):
        x = np.linspace(-12, 12, 200_001)
        density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        assert np.trapezoid(gelu(x) ** 2 * density, x) == pytest.approx(GELU_SECOND_MOMENT, abs=1e-4)

    def test_gradients_reach_latents(self, palette):
        latents = torch.randn(2, LATENT_DIM, requires_grad=True)
        palette.decode(latents).sum().backward()
        assert latents.grad.abs().min() > 0

    def test_wrong_hidden_size(self, palette):
        with pytest.raises(ValueError, match=r"`embeddings` must have shape \(..., 12\).*got \(2, 13\)"):
            palette.encode(torch.randn(2, 13))

    def test_wrong_latent_dim(self, palette):
        with pytest.raises(ValueError, match=r"`latents` must have shape \(..., 4\).*got \(2, 5\)"):
            palette.decode(torch.randn(2, 5))


class TestBuffers:
    def test_there_is_nothing_to_train(self, palette):
        assert list(palette.parameters()) == []
        assert not any(isinstance(module, torch.nn.Linear) for module in palette.modules())

    @pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
    def test_a_cast_never_reaches_the_values(self, palette, cast):
        before = copy.deepcopy(palette.state_dict())
        model = torch.nn.ModuleDict({"palette": palette, "head": torch.nn.Linear(2, 2)})
        cast(model)
        assert model["head"].weight.dtype != torch.float32
        for name, value in palette.state_dict().items():
            assert value.dtype == before[name].dtype, name
            assert torch.equal(value, before[name]), name

    def test_autocast_does_not_lower_the_precision(self, palette):
        latents, embeddings = torch.randn(3, LATENT_DIM), torch.randn(3, HIDDEN_SIZE)
        decoded, (mean, _) = palette.decode(latents), palette.encode(embeddings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(palette.decode(latents), decoded)
            assert torch.equal(palette.encode(embeddings)[0], mean)

    def test_low_precision_input_is_upcast(self, palette):
        latents = torch.randn(3, LATENT_DIM).bfloat16()
        assert palette.decode(latents).dtype == torch.float32
        assert torch.equal(palette.decode(latents), palette.decode(latents.float()))

    def test_default_dtype_is_ignored(self):
        torch.set_default_dtype(torch.bfloat16)
        try:
            palette = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, num_domains=1)
        finally:
            torch.set_default_dtype(torch.float32)
        assert {v.dtype for v in palette.state_dict().values() if v.is_floating_point()} == {torch.float32}

    def test_meta_device_then_load(self, palette):
        palette.fit_domain("math", torch.randn(20, LATENT_DIM))
        with torch.device("meta"):
            empty = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, (16, 8), num_domains=1)
        empty.to_empty(device="cpu").load_state_dict(palette.state_dict())
        assert_same_state(empty, palette)

    def test_meta_device_then_assign(self, palette):
        with torch.device("meta"):
            empty = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, (16, 8))
        empty.load_state_dict(palette.state_dict(), assign=True)
        assert_same_state(empty, palette)

    def test_moving_to_a_device_works(self, palette):
        assert {value.device.type for value in palette.to("meta").state_dict().values()} == {"meta"}

    def test_deepcopy_is_independent(self, palette):
        twin = copy.deepcopy(palette)
        assert_same_state(twin, palette)
        twin.fit_domain("math", torch.randn(20, LATENT_DIM))
        assert palette.domains == {} and len(palette.domain_means) == 0

    def test_shapes_follow_the_arguments(self):
        palette = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, num_domains=3)
        assert palette.domain_means.shape == (3, LATENT_DIM)
        assert palette.domain_cholesky.shape == (3, LATENT_DIM, LATENT_DIM)


class TestFitDomain:
    @pytest.mark.parametrize(("num_samples", "dim"), [(2, 6), (5, 6), (200, 6), (40, 1)])
    def test_covariance_is_sklearns(self, num_samples, dim):
        samples = torch.randn(num_samples, dim, dtype=torch.float64) * torch.arange(1, dim + 1) + 3.0
        expected = OAS().fit(samples.numpy()).covariance_
        np.testing.assert_allclose(shrunk_covariance(samples).numpy(), expected, rtol=1e-10)

    def test_gaussian_of_the_latents(self, palette):
        latents = torch.randn(50, LATENT_DIM) @ torch.randn(LATENT_DIM, LATENT_DIM) + 5.0
        assert palette.fit_domain("math", latents) == 1
        oas = OAS().fit(latents.double().numpy())
        np.testing.assert_allclose(palette.domain_means[0], oas.location_, rtol=1e-5)
        factor = palette.domain_cholesky[0]
        assert torch.equal(factor, factor.tril())
        np.testing.assert_allclose(factor @ factor.T, oas.covariance_, rtol=1e-4, atol=1e-6)
        assert palette.domains == {"math": {"source": 1, "count": 50}}

    def test_a_refit_keeps_the_old_row(self, palette):
        assert palette.fit_domain("math", torch.randn(20, LATENT_DIM)) == 1
        assert palette.fit_domain("code", torch.randn(20, LATENT_DIM)) == 2
        means, factors = palette.domain_means.clone(), palette.domain_cholesky.clone()
        assert palette.fit_domain("math", torch.randn(30, LATENT_DIM)) == 3
        assert torch.equal(palette.domain_means[:2], means) and torch.equal(palette.domain_cholesky[:2], factors)
        assert palette.domains == {"math": {"source": 3, "count": 30}, "code": {"source": 2, "count": 20}}

    def test_two_traces_are_enough(self, palette):
        palette.fit_domain("pair", torch.randn(2, LATENT_DIM))
        assert (palette.domain_cholesky[0].diagonal() > 0).all()

    def test_one_trace_is_not(self, palette):
        with pytest.raises(ValueError, match=r"Domain 'math' needs latents of at least 2 traces.*got 1"):
            palette.fit_domain("math", torch.randn(1, LATENT_DIM))

    def test_equal_latents_are_degenerate(self, palette):
        with pytest.raises(ValueError, match=r"latents of domain 'math' are degenerate.*Give traces that differ"):
            palette.fit_domain("math", torch.full((10, LATENT_DIM), 0.1))
        assert palette.domains == {} and len(palette.domain_means) == 0

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_non_finite_latents(self, palette, bad):
        latents = torch.randn(5, LATENT_DIM)
        latents[3, 1] = bad
        with pytest.raises(ValueError, match=r"`latents` of domain 'math' must be finite: 1 of 5 rows.*is row 3"):
            palette.fit_domain("math", latents)

    @pytest.mark.parametrize("latents", [torch.randn(5), torch.randn(5, 3), [[0.0] * LATENT_DIM] * 5])
    def test_wrong_shape(self, palette, latents):
        with pytest.raises(ValueError, match=r"`latents` of domain 'math' must be a tensor of shape \(N, 4\)"):
            palette.fit_domain("math", latents)

    @pytest.mark.parametrize("name", ["", "  ", None, 3])
    def test_names(self, palette, name):
        with pytest.raises(ValueError, match="`name` of a domain must be a non-empty string"):
            palette.fit_domain(name, torch.randn(5, LATENT_DIM))

    def test_sources_run_out(self):
        palette = PaletteVAE(HIDDEN_SIZE, LATENT_DIM, num_domains=MAX_DOMAINS)
        with pytest.raises(ValueError, match="Cannot fit domain 'math': all 30 sources are taken"):
            palette.fit_domain("math", torch.randn(5, LATENT_DIM))


class TestArguments:
    @pytest.mark.parametrize("argument", ["hidden_size", "latent_dim"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_sizes_must_be_positive(self, argument, value):
        with pytest.raises(ValueError, match=f"`{argument}` must be at least 1, got {value}"):
            PaletteVAE(**{"hidden_size": HIDDEN_SIZE, "latent_dim": LATENT_DIM, argument: value})

    @pytest.mark.parametrize("value", [1.5, "8", True, None])
    def test_sizes_must_be_integers(self, value):
        with pytest.raises(TypeError, match="`latent_dim` takes integers, got"):
            PaletteVAE(HIDDEN_SIZE, value)

    @pytest.mark.parametrize("value", [512, "512", None])
    def test_hidden_sizes_must_be_a_sequence(self, value):
        with pytest.raises(TypeError, match="`hidden_sizes` must be a sequence of layer widths"):
            PaletteVAE(HIDDEN_SIZE, LATENT_DIM, hidden_sizes=value)

    def test_hidden_sizes_must_be_positive(self):
        with pytest.raises(ValueError, match="`hidden_sizes` must be at least 1, got 0"):
            PaletteVAE(HIDDEN_SIZE, LATENT_DIM, hidden_sizes=(16, 0))

    def test_decoder_type(self):
        with pytest.raises(ValueError, match="`decoder_type` must be one of .*'mlp'.*, got 'cnn'"):
            PaletteVAE(HIDDEN_SIZE, LATENT_DIM, decoder_type="cnn")

    @pytest.mark.parametrize("value", [-1, MAX_DOMAINS + 1])
    def test_num_domains(self, value):
        with pytest.raises(ValueError, match=f"`num_domains` must be from 0 to 30, got {value}"):
            PaletteVAE(HIDDEN_SIZE, LATENT_DIM, num_domains=value)


def assert_same_state(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
