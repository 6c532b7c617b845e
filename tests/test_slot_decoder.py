"""`decoder_type="gpt"`: one latent, cut into slots, makes a whole prefix (METHOD 7), from decoder to `generate`."""

import copy
import json
import warnings

import pytest
import rollout_trainers
import torch
from torch import nn
from trainer_testing import HIDDEN, common_arguments, sft_dataset, tiny_base, tiny_tokenizer
from transformers import AutoModelForCausalLM

from reasoning_palette.modeling_palette import PaletteConfig, PaletteForCausalLM, PaletteVAE
from reasoning_palette.modeling_palette.latent_codes import normals_from_codes
from reasoning_palette.modeling_palette.latent_prefix import resolve_prefix
from reasoning_palette.modeling_palette.named_strategies import rows_of_prefix
from reasoning_palette.modeling_palette.slot_decoder import SlotTransformer
from reasoning_palette.trainers.best_latents import fit_domain_from_codes
from reasoning_palette.trainers.palette_sft_trainer import PaletteSFTConfig, PaletteSFTTrainer
from reasoning_palette.trainers.palette_vae_config import PaletteVAEConfig
from reasoning_palette.trainers.palette_vae_trainer import PaletteVAETrainer

SLOTS, WIDTH = 4, 64  # two attention heads
LATENT = SLOTS * WIDTH
IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 8, 9, 10]])
MASK = (IDS != 0).long()
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.5}


def slot_palette(**arguments):
    """A palette with two domains, whose norms, biases and positions are not those of a fresh one."""
    torch.manual_seed(1)
    palette = PaletteVAE(HIDDEN, LATENT, (16,), "gpt", num_slots=SLOTS, **arguments)
    for name, buffer in palette.decoder.named_buffers():
        if buffer.dim() == 1 or name.endswith("positions"):
            buffer.add_(0.3 * torch.randn_like(buffer))
    palette.trained.fill_(True)
    palette.embedding_mean.normal_()
    palette.embedding_std.uniform_(0.5, 2.0)
    palette.fit_domain("math", 0.3 * torch.randn(20, LATENT) + 1)
    palette.fit_domain("code", 0.3 * torch.randn(20, LATENT) - 1)
    return palette


def slot_model(**fields):
    base = tiny_base(**LIVELY)
    base.generation_config.eos_token_id = None
    return PaletteForCausalLM.from_base(base, slot_palette(), tokenizer=tiny_tokenizer(), **fields)


@pytest.fixture(scope="module")
def palette():
    return slot_palette()


@pytest.fixture(scope="module")
def model():
    return slot_model()


def torch_decoder(palette, latents):
    """The same decoder put together from torch's own layers: `(N, Z) -> (N, S, H)`."""
    body, head = palette.decoder
    hidden = latents.reshape(len(latents), SLOTS, -1) + body.positions
    for block in body.blocks:
        width = hidden.shape[-1]
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        names = {
            "self_attn.in_proj_": block.qkv,
            "self_attn.out_proj.": block.attention_out,
            "linear1.": block.mlp_in,
            "linear2.": block.mlp_out,
            "norm1.": block.attention_norm,
            "norm2.": block.mlp_norm,
        }
        layer.load_state_dict({f"{name}{kind}": getattr(one, kind) for name, one in names.items() for kind in KINDS})
        hidden = layer(hidden, src_mask=nn.Transformer.generate_square_subsequent_mask(SLOTS), is_causal=True)
    norm = nn.LayerNorm(hidden.shape[-1])
    norm.load_state_dict({kind: getattr(body.final_norm, kind) for kind in KINDS})
    rows = norm(hidden) @ head.weight.T + head.bias
    return rows * palette.embedding_std + palette.embedding_mean


KINDS = ("weight", "bias")


class TestDecoder:
    @pytest.mark.parametrize("num_layers", [1, 3])
    @torch.no_grad()
    def test_it_is_a_causal_pre_norm_transformer(self, num_layers):
        palette, latents = slot_palette(num_decoder_layers=num_layers), torch.randn(5, LATENT)
        expected = torch_decoder(palette, latents)
        assert expected.shape == (5, SLOTS, HIDDEN)
        torch.testing.assert_close(palette.decode(latents), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(palette.decode(latents[None])[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(palette.decode(latents[0]), expected[0], atol=1e-5, rtol=0)

    def test_a_slot_of_another_width_has_one_head(self):
        assert [SlotTransformer(4 * width, 4, 1).blocks[0].num_heads for width in (5, 32, 128)] == [1, 1, 4]

    def test_row_p_depends_on_slots_0_to_p_alone(self, palette):
        latents = torch.randn(3, SLOTS, WIDTH)
        rows = palette.decode(latents.flatten(1))
        for slot in range(SLOTS):
            changed = latents.clone()
            changed[:, slot] += torch.randn(WIDTH)  # a constant would be lost in the norms
            difference = (palette.decode(changed.flatten(1)) - rows).abs().amax(dim=(0, 2))
            assert difference[:slot].eq(0).all() and difference[slot:].gt(1e-3).all()

    def test_decode_rows(self, palette):
        latents, members, slots = torch.randn(3, LATENT), torch.tensor([2, 0, 2, 1]), torch.tensor([3, 0, 1, 2])
        rows = palette.decode_rows(latents, members, slots)
        torch.testing.assert_close(rows, palette.decode(latents)[members, slots], atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match=r"`latents` must have shape \(..., 256\).*got \(3, 5\)"):
            palette.decode_rows(torch.randn(3, 5), members, slots)

    def test_a_fresh_one_has_unit_scale_and_is_not_the_same_in_each_row(self):
        torch.manual_seed(0)
        palette = PaletteVAE(256, 1024, (512,), "gpt")
        assert (palette.num_slots, palette.num_decoder_layers) == (8, 2)
        rows = palette.decode(torch.randn(300, 1024))
        assert rows.std().item() == pytest.approx(1.0, abs=0.1) and rows.mean().item() == pytest.approx(0.0, abs=0.1)
        assert rows.std(dim=1).mean() > 0.5

    def test_it_is_frozen_float32(self, palette):
        twin = copy.deepcopy(palette).to(torch.bfloat16)
        assert list(twin.parameters()) == []
        assert all(torch.equal(value, palette.state_dict()[name]) for name, value in twin.state_dict().items())
        latents = torch.randn(2, LATENT)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(palette.decode(latents), twin.decode(latents))

    def test_from_the_meta_device(self, palette):
        with torch.device("meta"):
            empty = PaletteVAE(HIDDEN, LATENT, (16,), "gpt", num_domains=2, num_slots=SLOTS)
        empty.to_empty(device="cpu").load_state_dict(palette.state_dict())
        latents = torch.randn(2, LATENT)
        assert torch.equal(empty.decode(latents), palette.decode(latents))


class TestSegments:
    """A trace is pooled in parts, and the slots of a part encode and decode it."""

    @pytest.mark.parametrize("num_segments", [1, 2, 4])
    @torch.no_grad()
    def test_by_hand(self, num_segments):
        palette = slot_palette(num_segments=num_segments)
        pooled = torch.randn(5, num_segments, HIDDEN)
        means, logvars, first, last = [], [], palette.encoder[0], palette.encoder[2]
        for segment in pooled.unbind(1):
            hidden = nn.functional.gelu(
                (segment - palette.embedding_mean) / palette.embedding_std @ first.weight.T + first.bias
            )
            mean, logvar = (hidden @ last.weight.T + last.bias).chunk(2, dim=-1)
            means.append(mean)
            logvars.append(logvar)
        mean, logvar = palette.encode(pooled if num_segments > 1 else pooled[:, 0])
        assert mean.shape == (5, LATENT)
        torch.testing.assert_close(mean, torch.cat(means, dim=1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logvar, torch.cat(logvars, dim=1), atol=1e-5, rtol=1e-5)

        rows = torch_decoder(palette, mean)
        size = SLOTS // num_segments
        expected = torch.stack([rows[:, start : start + size].mean(1) for start in range(0, SLOTS, size)], dim=1)
        expected = expected if num_segments > 1 else expected[:, 0]
        torch.testing.assert_close(palette.reconstruct(mean), expected, atol=1e-5, rtol=0)

    def test_other_shapes_are_refused(self):
        with pytest.raises(
            ValueError, match=r"`embeddings` must have shape \(..., 4, 32\), the palette's segments and"
        ):
            slot_palette().encode(torch.randn(4, 3, HIDDEN))
        with pytest.raises(ValueError, match=r"`embeddings` must have shape \(..., 32\), the palette's hidden size"):
            slot_palette(num_segments=1).encode(torch.randn(4, 3))

    @pytest.mark.parametrize("num_segments", [3, 8])
    def test_they_divide_the_slots(self, num_segments):
        with pytest.raises(
            ValueError, match=f"`num_slots`=4 cannot be shared out among `num_segments`={num_segments}"
        ):
            slot_palette(num_segments=num_segments)
        with pytest.raises(
            ValueError, match=f"`num_slots`=4 cannot be shared out among `num_segments`={num_segments}"
        ):
            PaletteVAEConfig("out", decoder_type="gpt", num_slots=4, num_segments=num_segments)

    @pytest.mark.parametrize("num_segments", [None, 1])
    def test_training(self, tmp_path, num_segments):
        tiny_base().save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
        rows = [
            {
                "question": f"w{number % 7}",
                "answer": f"w{20 * kind + number} w{20 * kind + number // 2}",
                "domain": kind,
            }
            for number in range(16)
            for kind in (0, 1)
        ]
        rows = [{**row, "domain": f"kind{row['domain']}"} for row in rows]
        args = PaletteVAEConfig(
            **common_arguments(tmp_path / "out", max_steps=40, per_device_train_batch_size=8, learning_rate=3e-3),
            decoder_type="gpt",
            latent_dim=128,
            num_slots=4,
            num_segments=num_segments,
            beta=0.001,
        )
        trainer = PaletteVAETrainer(str(tmp_path / "base"), args, rows)
        before = copy.deepcopy(trainer.model.palette.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics = trainer.train().metrics
        moved = trainer.model.palette.decoder.state_dict()
        assert all(not torch.equal(value, before[f"decoder.{name}"]) for name, value in moved.items())
        assert 0 < metrics["train_reconstruction"] < 0.8
        trainer.save_model(str(tmp_path / "saved"))
        model = PaletteForCausalLM.from_pretrained(tmp_path / "saved")
        assert model.config.num_segments == (num_segments or 4)
        # what it was trained on, by hand: each text in four parts
        ids = [model.tokenizer(f"{row['question']}\n{row['answer']}")["input_ids"] for row in rows]
        table = model.get_input_embeddings().weight.detach()
        assert {len(row) for row in ids} == {3}
        parts = torch.stack([table[row][[0, 0, 1, 2]] for row in map(torch.tensor, ids)])  # the first token twice
        expected = parts if num_segments is None else torch.stack([table[row].mean(0) for row in ids])
        torch.testing.assert_close(model.pool_traces(rows), expected, atol=1e-6, rtol=0)
        means, _ = model.palette.encode(expected[0::2])
        torch.testing.assert_close(model.palette.domain_means[0], means.mean(0), atol=1e-4, rtol=0)
        assert model.generate(IDS, attention_mask=MASK, domain="kind1", max_new_tokens=2).shape == (2, 7)


class TestArguments:
    def test_the_slots_divide_the_latent(self):
        with pytest.raises(ValueError, match="`latent_dim`=1000 cannot be cut into `num_slots`=7 slots"):
            PaletteVAE(HIDDEN, 1000, (), "gpt", num_slots=7)

    @pytest.mark.parametrize("name", ["num_slots", "num_decoder_layers"])
    def test_of_gpt_alone(self, name):
        with pytest.raises(ValueError, match=f"`{name}`=2 is for `decoder_type`='gpt', got 'mlp'"):
            PaletteVAE(HIDDEN, 64, **{name: 2})
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            PaletteVAE(HIDDEN, 64, (), "gpt", **{name: 0})
        with pytest.raises(TypeError, match=f"`{name}` takes integers, got 2.0"):
            PaletteVAE(HIDDEN, 64, (), "gpt", **{name: 2.0})

    def test_config(self):
        base = tiny_base().config
        config = PaletteConfig(base_config=base, latent_dim=1024, decoder_type="gpt")
        assert (config.num_slots, config.num_decoder_layers) == (8, 2)
        assert (config.num_prefix_tokens, config.max_prefix_tokens) == (8, 8)
        config = PaletteConfig(base_config=base, latent_dim=64, decoder_type="gpt", num_slots=4, num_prefix_tokens=3)
        assert (config.num_prefix_tokens, config.max_prefix_tokens) == (3, 4)
        with pytest.raises(ValueError, match="`max_prefix_tokens`=64 is larger than `num_slots`=8"):
            PaletteConfig(base_config=base, latent_dim=64, decoder_type="gpt", max_prefix_tokens=64)
        plain = PaletteConfig(base_config=base)
        assert (plain.num_slots, plain.num_decoder_layers) == (None, None)
        assert (plain.num_prefix_tokens, plain.max_prefix_tokens) == (8, 64)


@torch.no_grad()
def spliced(model, latents, length, new_tokens=6):
    """Greedy completions of a stock base behind rows that torch's own layers decode, one unpadded row at a time."""
    base, rows = tiny_base(**LIVELY), torch_decoder(model.palette, latents)[:, :length]
    completions = []
    for prompt, mask, prefix in zip(IDS, MASK, rows, strict=True):
        ids = prompt[mask.bool()][None]
        for _ in range(new_tokens):
            embeds = torch.cat([prefix[None], base.get_input_embeddings()(ids)], dim=1)
            ids = torch.cat([ids, base(inputs_embeds=embeds).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        completions.append(ids[0, -new_tokens:])
    return torch.stack(completions)


def generated(model, **arguments):
    output = model.generate(IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False, **arguments)
    assert torch.equal(output[:, : IDS.shape[1]], IDS)
    return output[:, IDS.shape[1] :]


class TestGenerate:
    @pytest.mark.parametrize("length", [None, 1, 3, SLOTS])
    def test_codes(self, model, length):
        latents = normals_from_codes(
            torch.tensor([7, 9]), torch.zeros(2), LATENT, 0, model.palette.normal_quantiles
        )  # a code's one draw is that of its first position
        assert torch.equal(model.latents_from_codes(torch.tensor([7, 9]), 3)[:, 0], latents)
        expected = spliced(model, latents, length or SLOTS)
        assert torch.equal(generated(model, latent=[7, 9], num_prefix_tokens=length), expected)

    def test_codes_of_a_domain(self, model):
        codes = model.draw_codes(2, "code", torch.Generator().manual_seed(3))
        noise = normals_from_codes(codes, torch.zeros(2), LATENT, 0, model.palette.normal_quantiles).double()
        latents = model.palette.domain_means[1] + noise @ model.palette.domain_cholesky[1].double().T
        expected = spliced(model, latents.float(), SLOTS)
        assert torch.equal(generated(model, domain="code", latent_seed=3), expected)
        assert not torch.equal(expected, generated(model, domain="math", latent_seed=3))

    @pytest.mark.parametrize("length", [None, 2])
    def test_explicit_latents(self, model, length):
        latents = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(4))
        expected = spliced(model, latents, length or SLOTS)
        assert torch.equal(generated(model, latent=latents, num_prefix_tokens=length), expected)
        expected = spliced(model, latents[:1].expand(2, -1), length or SLOTS)
        assert torch.equal(generated(model, latent=latents[0], num_prefix_tokens=length), expected)

    def test_explicit_latents_of_several_calls_at_once(self, model):
        generator = torch.Generator().manual_seed(5)
        first, second = torch.randn(2, 1, LATENT, generator=generator), torch.randn(2, 1, LATENT, generator=generator)
        lookup = model.get_input_embeddings()
        with (
            model.explicit_latents(first.expand(-1, 3, -1)) as ids,
            model.explicit_latents(second.expand(-1, SLOTS, -1)) as others,
            torch.no_grad(),
        ):
            torch.testing.assert_close(
                lookup(ids), torch_decoder(model.palette, first[:, 0])[:, :3], atol=1e-5, rtol=0
            )
            part = others[:, 2:]  # a chunk of a prompt: rows from the middle of a prefix
            torch.testing.assert_close(
                lookup(part), torch_decoder(model.palette, second[:, 0])[:, 2:], atol=1e-5, rtol=0
            )
        with pytest.raises(ValueError, match="belongs to an explicit latent whose block has ended"):
            lookup(ids)

    def test_a_call_decodes_each_latent_once(self, model, monkeypatch):
        counts, decode_rows = [], model.palette.decode_rows

        def counting(latents, *args):
            counts.append(len(latents))
            return decode_rows(latents, *args)

        monkeypatch.setattr(model.palette, "decode_rows", counting)
        generated(model, latent=[7, 9])
        generated(model, latent=[7, 7])
        generated(model, latent=torch.zeros(LATENT))
        assert counts == [2, 1, 2]  # once per call, for its two sequences; the decode steps hold no latent id

    def test_compiled(self, model):
        torch.compiler.reset()
        ids = torch.cat([model.latent_ids(torch.tensor([7, 9]), 3), IDS], dim=1)
        with torch.no_grad():
            compiled = torch.compile(model, backend="eager", fullgraph=True)(ids).logits
            torch.testing.assert_close(compiled, model(ids).logits, atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"latent": 7, "latent_tile": True}, "`latent_tile`=True repeats one row, but .* Drop it"),
            ({"domain": "math", "latent_tile": True}, "`latent_tile`=True repeats one row"),
            ({"latent": torch.zeros(2, 3, LATENT)}, r"got shape \(2, 3, 256\).*one latent makes the whole prefix"),
            ({"latent": 7, "num_prefix_tokens": 5}, "`num_prefix_tokens`=5 is out of range.*`max_prefix_tokens`=4"),
            ({"latent": torch.zeros(WIDTH)}, r"float tensor of shape \(256,\) or \(2, 256\), got shape \(64,\)"),
        ],
    )
    def test_refusals(self, model, arguments, message):
        with pytest.raises(ValueError, match=message):
            generated(model, **arguments)

    def test_explicit_latents_are_one_for_each_prefix(self, model):
        with pytest.raises(ValueError, match="differ within a prefix"), model.explicit_latents(torch.randn(2, 3, 256)):
            pass
        with pytest.raises(ValueError, match="L from 1 to `num_slots`=4"), model.explicit_latents(torch.randn(2, 256)):
            pass
        with pytest.raises(ValueError, match="L from 1 to"), model.explicit_latents(torch.zeros(1, 5, 256)):
            pass
        with pytest.raises(ValueError, match="`latent_tile`=True repeats one row"):
            model.latent_ids(torch.tensor([7]), 2, latent_tile=True)


class TestCheckpoints:
    @pytest.mark.parametrize("palette_only", [False, True])
    def test_round_trip(self, tmp_path, palette_only):
        tiny_base(**LIVELY).save_pretrained(tmp_path / "base")
        model = slot_model(base_model_name_or_path=str(tmp_path / "base"))
        model.save_pretrained(tmp_path / "saved", palette_only=palette_only)
        fields = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert (fields["decoder_type"], fields["num_slots"], fields["max_prefix_tokens"]) == ("gpt", SLOTS, SLOTS)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert loaded.latent_fingerprint() == model.latent_fingerprint()
        assert loaded.palette.num_decoder_layers == 2
        loaded.generation_config.eos_token_id = None
        assert torch.equal(generated(loaded, latent=[7, 9]), generated(model, latent=[7, 9]))

    def test_built_from_a_config_it_is_filled(self, model):
        fresh = AutoModelForCausalLM.from_config(model.config)
        for name, buffer in fresh.palette.named_buffers():
            assert buffer.dtype == torch.bool or buffer.isfinite().all(), name
        assert fresh.palette.decode(torch.randn(20, LATENT)).std().item() == pytest.approx(1.0, abs=0.3)

    def test_rows_of_exports(self, model):
        latents = torch.randn(LATENT, generator=torch.Generator().manual_seed(6))
        for value, of in ((1234, model.latents_from_codes(torch.tensor([1234]), 1)[:, 0]), (latents, latents[None])):
            prefix = resolve_prefix(model.config, 1, 1, value, num_prefix_tokens=3)
            with torch.no_grad():
                rows, expected = rows_of_prefix(model, prefix), torch_decoder(model.palette, of)[0, :3]
            torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


class TestTrainers:
    def trainer(self, folder, **arguments):
        config = PaletteSFTConfig(
            **common_arguments(
                folder, per_device_train_batch_size=4, max_steps=2, num_prefix_tokens=3, max_length=32, **arguments
            )
        )
        return PaletteSFTTrainer(slot_model(), config, train_dataset=sft_dataset(), processing_class=tiny_tokenizer())

    @pytest.mark.parametrize("pairing", ["prior", "posterior"])
    def test_sft(self, tmp_path, pairing):
        trainer = self.trainer(tmp_path, latent_pairing=pairing)
        before = trainer.palette_model.latent_fingerprint()
        seen, decode_rows = [], trainer.palette_model.palette.decode_rows

        def recording(latents, members, slots):
            seen.append((len(latents), slots.reshape(-1, 3).tolist()))
            return decode_rows(latents, members, slots)

        trainer.palette_model.palette.decode_rows = recording
        trainer.train()
        assert trainer.palette_model.latent_fingerprint() == before
        assert (4, [[0, 1, 2]] * 4) in seen  # a latent for each of the four documents, and three rows of each

    def test_grpo(self, tmp_path):
        trainer = rollout_trainers.make_trainer(tmp_path, "grpo", slot_model(), beta=0.1)
        rollout_trainers.train_under_watch(trainer)

    def test_tiling_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`latent_tile`=True repeats one row"):
            self.trainer(tmp_path, latent_tile=True)

    def test_domain_of_codes(self):
        model = slot_model()
        codes = list(range(1, 31))
        fit_domain_from_codes(model, "best", codes, num_prefix_tokens=SLOTS)
        latents = normals_from_codes(torch.tensor(codes), torch.zeros(30), LATENT, 0, model.palette.normal_quantiles)
        torch.testing.assert_close(model.palette.domain_means[2], latents.mean(0), atol=1e-6, rtol=0)
        assert model.palette.domains["best"] == {"source": 3, "count": 30}
