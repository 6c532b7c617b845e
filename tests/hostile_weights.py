"""Checkpoints whose weights mean harm: pickles, headers that lie, sizes beyond reason, values that are no numbers."""

import json
import pickle

import torch
from hostile_checkpoints import (
    FILE,
    Bomb,
    case,
    edit_base_config,
    edit_config,
    edit_tensors,
    entry,
    of_config,
    own_base,
    write_adapter,
    write_file,
    write_index,
)
from safetensors.torch import load_file

# Pickles

PICKLES = "Weights that are pickles"


@case(PICKLES, "`palette.bin` in place of `palette.safetensors`", r"OSError: .*palette\.safetensors")
def palette_bin(folder):
    (folder / FILE).unlink()
    torch.save({"embedding_mean": Bomb()}, folder / "palette.bin")


@case(PICKLES, "a pickle named `palette.safetensors`", r"ValueError: .*is damaged")
def pickle_by_another_name(folder):
    (folder / FILE).write_bytes(pickle.dumps(Bomb(), protocol=4))


@case(PICKLES, "`pytorch_model.bin` alone", r"OSError: .*read from safetensors alone", on="full")
def pytorch_model_bin(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb()}, folder / "pytorch_model.bin")


@case(
    PICKLES,
    "`pytorch_model.bin` alone, on the Hub",
    r"OSError: .*read from safetensors alone",
    on="full",
    through_hub=True,
)
def pytorch_model_bin_on_the_hub(folder):
    pytorch_model_bin(folder)


@case(
    PICKLES,
    "`use_safetensors=False` beside both",
    r"ValueError: `use_safetensors`=False asks for weights that are pickles",
    on="full",
    arguments={"use_safetensors": False},
)
def asked_for(folder):
    torch.save({"model.embed_tokens.weight": Bomb()}, folder / "pytorch_model.bin")


@case(
    PICKLES,
    "`transformers_weights` of the config names `adapter_model.bin`",
    r"ValueError: .*transformers_weights='adapter_model.bin'",
    on="full",
)
def named_in_the_config(folder):
    edit_config(folder, transformers_weights="adapter_model.bin")
    torch.save({"model.embed_tokens.weight": Bomb()}, folder / "adapter_model.bin")


@case(
    PICKLES, "the index names a shard that is a `.bin`", r"ValueError: .*is no safetensors file beside it", on="full"
)
def shard_bin(folder):
    write_index(folder, "model-00001-of-00001.bin")
    torch.save({"model.embed_tokens.weight": Bomb()}, folder / "model-00001-of-00001.bin")


@case(
    PICKLES,
    "an adapter with `adapter_model.bin` alone",
    r"OSError: The adapter .* has no adapter_model\.safetensors",
    how="load_adapter",
)
def adapter_bin(folder):
    write_adapter(folder / "adapter", str(folder))
    torch.save({"base_model.model.lm_head.lora_A.weight": Bomb()}, folder / "adapter" / "adapter_model.bin")


@case(
    PICKLES,
    "the base has `pytorch_model.bin` alone",
    r"OSError: The base .* has no weights in safetensors.*pass `use_safetensors=False`",
)
def bin_of_the_base(folder):
    base = own_base(folder)
    (base / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb()}, base / "pytorch_model.bin")


@case(
    PICKLES,
    "`transformers_weights` of the base names `adapter_model.bin`",
    r"ValueError: The config of the base .*transformers_weights='adapter_model.bin'",
)
def named_in_the_config_of_the_base(folder):
    base = own_base(folder)
    edit_config(base, transformers_weights="adapter_model.bin")
    torch.save({"model.embed_tokens.weight": Bomb()}, base / "adapter_model.bin")


# Headers

HEADERS = "Headers that lie"


@case(HEADERS, "a header of 2⁶³ bytes", r"ValueError: .*claims a header of 9,223,372,036,854,775,808 bytes")
def header_beyond_the_file(folder):
    write_file(folder, b"{}", claimed=1 << 63)


@case(HEADERS, "a sparse header of 2 GiB", r"ValueError: .*claims a header of 2,147,483,648 bytes")
def sparse_header(folder):
    write_file(folder, b"", claimed=1 << 31, size=1 << 31)


@case(HEADERS, "a million tensors of no size", r"ValueError: .*claims a header of \d\d,\d{3},\d{3} bytes")
def a_million_tensors(folder):
    write_file(folder, {f"{number}": entry([0], 0, 0) for number in range(1_000_000)})


@case(HEADERS, "100,000 more tensors, of no size", r"ValueError: .*`0` is .*, expected nothing")
def more_tensors(folder):
    header, size = of_config(folder)
    write_file(folder, header | {f"{number}": entry([0], size, size) for number in range(100_000)}, size=size)


@case(HEADERS, "the last byte is missing", r"ValueError: .*is damaged")
def truncated(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])


@case(HEADERS, "an offset beyond the file", r"ValueError: .*is damaged")
def offset_outside(folder):
    write_file(folder, {"embedding_mean": entry([32], 1 << 40)}, bytes(128))


@case(HEADERS, "two tensors in the same bytes", r"ValueError: .*is damaged")
def overlapping(folder):
    write_file(folder, {"embedding_mean": entry([32]), "embedding_std": entry([32])}, bytes(128))


@case(HEADERS, "one name twice, in different bytes", r"ValueError: .*is damaged")
def duplicate(folder):
    one, two = (json.dumps(entry([32], start)) for start in (0, 128))
    write_file(folder, f'{{"embedding_mean": {one}, "embedding_mean": {two}}}'.encode(), bytes(256))


@case(HEADERS, "10⁶ x 10⁶ numbers in 128 bytes", r"ValueError: .*is damaged")
def shape_beyond_the_data(folder):
    write_file(folder, {"embedding_mean": entry([10**6, 10**6], 0, 128)}, bytes(128))


@case(HEADERS, "a shape whose product overflows", r"ValueError: .*is damaged")
def shape_that_overflows(folder):
    write_file(folder, {"embedding_mean": entry([1 << 40, 1 << 40], 0, 128)}, bytes(128))


@case(HEADERS, "a negative size", r"ValueError: .*is damaged")
def negative_size(folder):
    write_file(folder, {"embedding_mean": entry([-32], 0, 128)}, bytes(128))


# Sizes

SIZES = "Sizes"


@case(SIZES, "`latent_dim` is 10⁹", r"ValueError: .*has [\d,.]+ GiB; at most 4 GiB are read")
def wide_latent(folder):
    edit_config(folder, latent_dim=10**9)


@case(SIZES, "the same in a full checkpoint", r"ValueError: .*has [\d,.]+ GiB; at most 4 GiB are read", on="full")
def wide_latent_in_full(folder):
    edit_config(folder, latent_dim=10**9)


@case(SIZES, "`latent_dim` is 2⁶²", r"ValueError: .*describes no palette that could exist")
def latent_beyond_int64(folder):
    edit_config(folder, latent_dim=1 << 62)


@case(SIZES, "`latent_dim` fits no 64-bit integer", r"ValueError: .*describes no palette that could exist")
def latent_beyond_any_integer(folder):
    edit_config(folder, latent_dim=10**30)


@case(SIZES, "a million hidden layers", r"ValueError: .*a palette of 1000000 layers; at most 256")
def many_layers(folder):
    edit_config(folder, encoder_hidden_sizes=[1] * 1_000_000)


@case(SIZES, "a GPT decoder of a million layers", r"ValueError: .*a palette of 1000000 layers; at most 256")
def many_decoder_layers(folder):
    edit_config(
        folder,
        decoder_type="gpt",
        latent_dim=64,
        num_slots=8,
        num_decoder_layers=1_000_000,
        num_prefix_tokens=8,
        max_prefix_tokens=8,
    )


@case(SIZES, "config and a sparse file of 24 GiB agree", r"ValueError: .*has [\d,.]+ GiB; at most 4 GiB are read")
def sparse_file(folder):
    edit_config(folder, latent_dim=10_000, encoder_hidden_sizes=[200_000])
    header, size = of_config(folder)
    write_file(folder, header, size=size)


@case(SIZES, "a sparse tensor of 500,000 x 500,000", r"ValueError: .*`encoder\.0\.weight` is \(\(500000, 500000\)")
def sparse_tensor(folder):
    header, _ = of_config(folder)
    start = 0
    header["encoder.0.weight"] = entry([500_000, 500_000])
    for name in header:
        first, last = header[name]["data_offsets"]
        header[name]["data_offsets"] = [start, start + last - first]
        start += last - first
    write_file(folder, header, size=start)


@case(
    SIZES,
    "a full checkpoint with a sparse palette of 1 GiB",
    r"ValueError: .*`palette\.|ValueError: .*`encoder",
    on="full",
)
def sparse_palette_in_full(folder):
    tensors = load_file(folder / "model.safetensors")
    header, start = {}, 0
    for name, tensor in tensors.items():
        shape = (1 << 14, 1 << 14) if name == "palette.encoder.0.weight" else tuple(tensor.shape)
        end = start + torch.Size(shape).numel() * tensor.element_size()
        header[name] = entry(shape, start, end, "BOOL" if tensor.dtype == torch.bool else "F32")
        start = end
    write_file(folder, {"__metadata__": {"format": "pt"}, **header}, size=start, file="model.safetensors")


@case(SIZES, "`base_config` of a full checkpoint says 10⁶ tokens, 10⁶ wide", r"RuntimeError: ", on="full")
def wide_base(folder):
    edit_base_config(folder, vocab_size=10**6, hidden_size=10**6)


@case(SIZES, "2³¹ domains", r"(ValueError|TypeError): .*2147483648")
def source_beyond_the_ids(folder):
    edit_config(folder, domains={"math": {"source": 1 << 31, "count": 2}})


@case(SIZES, "a source below 1", r"ValueError: .*must be at least 1, got -1")
def negative_source(folder):
    edit_config(folder, domains={"math": {"source": -1, "count": 2}})


@case(SIZES, "`num_codes` is 2⁴⁰", r"ValueError: The latent ids collide with the end of int32")
def codes_beyond_the_ids(folder):
    edit_config(folder, num_codes=1 << 40)


@case(SIZES, "`max_prefix_tokens` is 2³¹", r"ValueError: The latent ids collide with the end of int32")
def positions_beyond_the_ids(folder):
    edit_config(folder, max_prefix_tokens=1 << 31)


@case(SIZES, "the first latent id is 5, and the config says that the base has 4 tokens", r"ValueError: .*collides")
def ids_among_the_tokens(folder):
    edit_config(folder, latent_id_base=5)
    edit_base_config(folder, vocab_size=4)


@case(SIZES, "a config of 100,000 brackets, one in the other", r"(RecursionError|OSError): ")
def deep_config(folder):
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")


# Values

VALUES = "Tensors"


def with_value(name, value):
    def damage(folder):
        edit_tensors(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(value))

    damage.__name__ = f"{value}_in_{name}"
    return damage


for _name in ("encoder.0.weight", "decoder.0.bias", "domain_cholesky", "embedding_std", "normal_quantiles"):
    for _value in (float("nan"), float("inf")):
        case(VALUES, f"`{_name}` holds {_value}", rf"ValueError: .*holds NaN or infinity in `{_name}`")(
            with_value(_name, _value)
        )


@case(VALUES, "NaN in the palette of a full checkpoint", r"ValueError: .*holds NaN or infinity", on="full")
def nan_in_full(folder):
    edit_tensors(folder, lambda tensors: tensors["palette.domain_means"].fill_(float("nan")), "model.safetensors")


@case(VALUES, "a tensor of another shape", r"ValueError: .*`encoder\.0\.weight` is \(\(16, 33\)")
def wrong_shape(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"encoder.0.weight": torch.zeros(16, 33)}))


@case(VALUES, "another shape in a full checkpoint", r"ValueError: .*`encoder\.0\.weight` is \(\(16, 33\)", on="full")
def wrong_shape_in_full(folder):
    change = {"palette.encoder.0.weight": torch.zeros(16, 33)}
    edit_tensors(folder, lambda tensors: tensors.update(change), "model.safetensors")


for _dtype, _says in ((torch.float64, "F64"), (torch.int8, "I8"), (torch.bfloat16, "BF16")):
    for _on in ("palette", "full"):

        def _damage(folder, dtype=_dtype, on=_on):
            file, start = (FILE, "") if on == "palette" else ("model.safetensors", "palette.")
            name = f"{start}encoder.0.weight"
            edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}), file)

        _damage.__name__ = f"{_says}_in_{_on}"
        _where = "" if _on == "palette" else ", in a full checkpoint"
        case(VALUES, f"a tensor in {_says}{_where}", rf"ValueError: .*`encoder\.0\.weight` is .*'{_says}'", on=_on)(
            _damage
        )


@case(VALUES, "a tensor is missing", r"ValueError: .*`decoder\.0\.bias` is nothing, expected")
def missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("decoder.0.bias"))


@case(VALUES, "a surplus tensor named `../../x`", r"ValueError: .*`\.\./\.\./x` is .*expected nothing")
def surplus_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"../../x": torch.zeros(1)}))
