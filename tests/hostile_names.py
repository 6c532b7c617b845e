"""Checkpoints whose names mean harm: paths, bases, and code of others."""

import shutil

from hostile_checkpoints import (
    CANARY,
    FILE,
    LOADS,
    case,
    edit_base_config,
    edit_config,
    edit_json,
    own_base,
    write_adapter,
    write_index,
)

MODULE = f"{CANARY}\nfrom transformers import Qwen3ForCausalLM\n\n\nclass Hostile(Qwen3ForCausalLM):\n    pass\n"

# Names and paths

PATHS = "Names and paths"
NAMES = ["../../x", "/etc/x", "a/b", "two\nlines", "<script>alert(1)</script>", "| a | b |", "nul\0", "\u202egnp"]


@case(PATHS, "domains named `../../x`, `/etc/x`, two lines, HTML, a row of a table, NUL", LOADS, how="load_and_save")
def names_of_domains(folder):
    edit_config(folder, domains={name: {"source": 1 + number % 2, "count": 2} for number, name in enumerate(NAMES)})


def index_case(name, what, file):
    def damage(folder):
        write_index(folder, file)
        shutil.copyfile(folder / "elsewhere.safetensors", folder.parent / "outside.safetensors")

    damage.__name__ = name
    case(PATHS, what, r"ValueError: .*is no safetensors file beside it", on="full")(damage)


index_case("shard_above", "the index names `../outside.safetensors`", "../outside.safetensors")
index_case("absolute_shard", "the index names `/etc/passwd`", "/etc/passwd")
index_case("nested_shard", "the index names `a/../../outside.safetensors`", "a/../../outside.safetensors")
index_case("number_as_shard", "the index names a number", 7)


@case(PATHS, "an index that is a list", r"ValueError: model\.safetensors\.index\.json of .* is damaged", on="full")
def index_of_another_form(folder):
    write_index(folder, "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text("[1]")


@case(
    PATHS,
    "an index names `../outside.safetensors`, on the Hub",
    r"ValueError: .*is no safetensors file beside it",
    on="full",
    through_hub=True,
)
def shard_above_on_the_hub(folder):
    write_index(folder, "../outside.safetensors")


@case(
    PATHS,
    "`palette.safetensors` is a link to a text elsewhere, of which nothing may be shown",
    r"ValueError: .*is damaged(?!.*secret)",
)
def link_to_another_file(folder):
    (folder.parent / "elsewhere").write_text("\2\0\0\0\0\0\0\0{}a secret")
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(folder.parent / "elsewhere")


def link_case(name, what, link, target):
    def damage(folder):
        outside = folder.parent / "outside"
        outside.mkdir()
        (outside / "precious").write_text("precious")
        path = folder / link
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(outside / target)

    damage.__name__ = name
    case(PATHS, what, r"ValueError: .*is a link to .*which saving would write to", how="save_over")(damage)


link_case("link_to_write_through", "saving over a folder whose `palette.safetensors` is a link", FILE, "precious")
link_case("code_link", "saving over a folder whose `palette_vae.py` is a link", "palette_vae.py", "precious")
link_case("folder_link", "saving over a folder whose `trainers` is a link to a folder", "trainers", "")


# The base

BASES = "The base of a palette-only checkpoint"


def base_case(name, what, value, expected, **settings):
    def damage(folder):
        edit_config(folder, base_model_name_or_path=value)

    damage.__name__ = name
    case(BASES, what, expected, **settings)(damage)


base_case("a_folder_of_the_system", "it is `/etc`", "/etc", r"(OSError|ValueError): .*/etc")
base_case("a_folder_above", "it is `../../x`", "../../x", r"OSError: ")
base_case("an_address", "it is `http://127.0.0.1:9/x/y`", "http://127.0.0.1:9/x/y", r"OSError: ")
base_case("an_option", "it is `--upload-pack=x`", "--upload-pack=x", r"OSError: ")
base_case("a_number", "it is a number", 7, r"TypeError: `base_model_name_or_path` must be a string or None")
base_case(
    "itself",
    "it is the checkpoint itself, on the Hub",
    "mallory/itself",
    r"ValueError: .*palette model itself",
    through_hub=True,
)
base_case(
    "first_of_two",
    "two palettes name each other",
    "mallory/second_of_two",
    r"ValueError: .*palette model itself",
    through_hub=True,
)
base_case(
    "second_of_two",
    "and the other of them",
    "mallory/first_of_two",
    r"ValueError: .*palette model itself",
    through_hub=True,
)


@case(BASES, "it is a full palette checkpoint", r"ValueError: .*palette model itself")
def full_palette_as_base(folder):
    edit_config(folder, base_model_name_or_path=str(folder.parent.parent / "full"))


@case(BASES, "it is an adapter that names this checkpoint", r"ValueError: .*palette model itself")
def adapter_that_leads_back(folder):
    write_adapter(folder.parent / "adapter", str(folder))
    edit_config(folder, base_model_name_or_path=str(folder.parent / "adapter"))


@case(BASES, "it is an adapter that names itself", r"ValueError: The base .*is an adapter that leads to no model")
def adapter_on_itself(folder):
    adapter = folder.parent / "adapter"
    write_adapter(adapter, str(adapter))
    edit_config(folder, base_model_name_or_path=str(adapter))


@case(BASES, "`base_config` is a palette's", r"ValueError: .*a palette stands on a plain model", on="full")
def nested_config(folder):
    edit_json(folder / "config.json", lambda config: config.update(base_config=dict(config)))


# Code

CODE = "Code of others"
GENERATE = f"{CANARY}\n\n\ndef generate(model, **kwargs):\n    return model.generate(**kwargs)\n"


@case(CODE, "the base brings code, loaded without trust", LOADS, through_hub=True)
def code_of_the_base(folder):
    base = own_base(folder)
    add_code(base)
    edit_config(folder, base_model_name_or_path="mallory/code_of_the_base-base")


@case(
    CODE,
    "the base brings code, and the palette alone is trusted",
    LOADS,
    through_hub=True,
    how="load_without_the_package",
)
def code_of_the_base_beside_trust(folder):
    add_code(own_base(folder))
    edit_config(folder, base_model_name_or_path="mallory/code_of_the_base_beside_trust-base")


@case(
    CODE,
    "the base's own class exists in its code alone",
    r"ValueError: .*trust_remote_code=True|ValueError: .*does not recognize this architecture",
)
def code_that_is_needed(folder):
    base = own_base(folder)
    add_code(base)
    edit_config(base, model_type="hostile")


@case(CODE, "`auto_map` names another repository, loaded without trust", LOADS)
def code_of_another_repository(folder):
    edit_config(
        folder, auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "mallory/code--hostile.Hostile")
    )


@case(CODE, "the same in `base_config`", LOADS, on="full", how="load_and_save")
def code_of_another_repository_for_the_base(folder):
    edit_base_config(folder, auto_map={"AutoModelForCausalLM": "mallory/code--hostile.Hostile"})


@case(CODE, "the code of the palette's own files was replaced, loaded without trust", LOADS)
def replaced_code(folder):
    for module in folder.rglob("*.py"):
        module.write_text(CANARY)


@case(
    CODE,
    "the same, trusted, where the package is installed: its own classes go before",
    LOADS,
    arguments={"trust_remote_code": True},
)
def replaced_code_that_is_trusted(folder):
    replaced_code(folder)


@case(CODE, "`custom_generate/generate.py` of another author, loaded without trust", LOADS, how="load_and_generate")
def generate_of_another_author(folder):
    (folder / "custom_generate" / "generate.py").write_text(GENERATE)


@case(
    CODE,
    "the same, trusted: it runs where `generate` is told of it by `custom_generate=` alone",
    LOADS,
    how="load_and_generate",
    arguments={"trust_remote_code": True},
)
def generate_of_a_trusted_author(folder):
    generate_of_another_author(folder)


@case(
    CODE,
    "the same in the base, and the palette alone is trusted",
    LOADS,
    through_hub=True,
    how="load_without_the_package",
)
def generate_of_the_base(folder):
    base = own_base(folder)
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(GENERATE)
    edit_config(folder, base_model_name_or_path="mallory/generate_of_the_base-base")


@case(CODE, "the tokenizers of palette and base bring code", LOADS, how="load_and_save")
def code_of_the_tokenizer(folder):
    for place in (folder, own_base(folder)):
        add_code(place)
        settings = place / "tokenizer_config.json"
        edit_json(
            settings,
            lambda content: content.update(auto_map={"AutoTokenizer": ["hostile.Hostile", "hostile.Hostile"]}),
        )


@case(
    CODE,
    "the config asks for the attention kernel of a repository",
    r"ValueError: .*attn_implementation='mallory/kernel'",
    on="full",
)
def kernel(folder):
    edit_config(folder, attn_implementation="mallory/kernel")


@case(CODE, "`base_config` asks for it", r"ValueError: .*attn_implementation='mallory/kernel'", on="full")
def kernel_of_the_base(folder):
    edit_base_config(folder, _attn_implementation="mallory/kernel")


def add_code(folder):
    (folder / "hostile.py").write_text(MODULE)
    edit_config(folder, auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "hostile.Hostile"))
