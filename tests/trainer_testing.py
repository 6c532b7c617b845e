"""Tiny models and data for the trainer tests, made in memory."""

import copy

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from reasoning_palette.modeling_palette import PaletteForCausalLM, PaletteVAE

WORDS = [f"w{number}" for number in range(40)]
HIDDEN, LATENT = 32, 4


def tiny_tokenizer():
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128
    )


def tiny_base(seed=0, **config):
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(WORDS) + 3,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return Qwen3ForCausalLM(Qwen3Config(**{**settings, **config})).eval()


def tiny_palette(seed=1):
    """A palette with two domains, far apart."""
    torch.manual_seed(seed)
    palette = PaletteVAE(HIDDEN, latent_dim=LATENT, hidden_sizes=(16,))
    palette.trained.fill_(True)
    palette.embedding_std.fill_(0.2)
    palette.fit_domain("math", torch.randn(20, LATENT) + 2)
    palette.fit_domain("code", torch.randn(20, LATENT) - 2)
    return palette


def tiny_palette_model(seed=0, **config):
    return PaletteForCausalLM.from_base(tiny_base(seed, **config), palette=tiny_palette(), tokenizer=tiny_tokenizer())


def sft_dataset(num_rows=16):
    """Prompts and completions of different lengths."""
    rows = [
        {
            "prompt": " ".join(WORDS[(row + i) % 20] for i in range(2 + row % 4)),
            "completion": " " + " ".join(WORDS[20 + (row * i) % 20] for i in range(3 + row % 3)),
        }
        for row in range(num_rows)
    ]
    return Dataset.from_list(rows)


def rl_dataset(num_rows=16):
    return sft_dataset(num_rows).select_columns(["prompt"])


def word_reward(completions, **kwargs):
    """The share of even words: something to learn, defined for every completion."""
    counts = [[int(word[1:]) % 2 == 0 for word in text.split()] for text in completions]
    return [sum(even) / max(len(even), 1) for even in counts]


def common_arguments(folder, **arguments):
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        **arguments,
    }


def snapshot(module):
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in copy.copy(module).state_dict().items()}


def decoded_latents(model, latent_ids):
    """What a palette decodes latent ids to (len(latent_ids), H), by way of their codes and positions."""
    offset = torch.tensor(latent_ids) - model.config.latent_id_base
    codes, positions = offset // model.config.max_prefix_tokens, offset % model.config.max_prefix_tokens
    latents = torch.stack(
        [
            model.latents_from_codes(code[None], int(position) + 1)[0, -1]
            for code, position in zip(codes, positions, strict=True)
        ]
    )
    return model.palette.decode(latents)


def spliced_logits(base, model, prefix_ids, token_ids, at=0, grad=False):
    """
    Logits of a stock base on `inputs_embeds` with the prefix spliced in by hand: one unpadded row.

    Args:
        base: A stock copy of the model's base.
        model: The palette model whose palette decodes.
        prefix_ids (`list[int]`): Latent ids of a code's positions 0 to L - 1; may be empty.
        token_ids (`list[int]`): The row's ordinary tokens.
        at (`int`): How many of them stand in front of the prefix.
        grad (`bool`): Whether to keep the graph.
    """
    with torch.set_grad_enabled(grad):
        embeds = base.get_input_embeddings()(torch.tensor([token_ids]))
    if prefix_ids:
        rows = decoded_latents(model, prefix_ids)[None].to(embeds)
        embeds = torch.cat([embeds[:, :at], rows, embeds[:, at:]], dim=1)
    with torch.set_grad_enabled(grad):
        return base(inputs_embeds=embeds).logits[0]


def assert_same_weights(model, other):
    """Every parameter of `model` is bit-identical to that of `other`."""
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, others[name]), name


def assert_weights_moved(model, before):
    """Every matrix differs from its snapshot."""
    for name, parameter in model.named_parameters():
        assert parameter.dim() < 2 or not torch.equal(parameter, before[name]), name


def guided_counts(trainer, prompt_ids, group_size):
    """Rows with latent ids, per group."""
    id_base = trainer.palette_model.config.latent_id_base
    guided = [any(token >= id_base for token in ids) for ids in prompt_ids]
    return [sum(guided[i : i + group_size]) for i in range(0, len(guided), group_size)]


def record_generations(trainer):
    """Collects what `_tokenize_prompts` hands to generation, call by call, while the trainer runs."""
    calls, original = [], trainer._tokenize_prompts

    def recording(prompts):
        output = original(prompts)
        calls.append((trainer.model.training, trainer.state.global_step, output[0]))
        return output

    trainer._tokenize_prompts = recording
    return calls


def assert_logps_equal_spliced(trainer, scorer, base, inputs):
    """
    Log-probs of completions, as the loss takes them from `scorer`, against hand-spliced rows of a stock base.

    Args:
        trainer: GRPO or RLOO trainer.
        scorer: The policy or the reference model.
        base: A stock model with the weights of `scorer`.
        inputs (`dict`): What `_generate_and_score_completions` returned.
    """
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        scored = trainer._get_per_token_logps_and_entropies(scorer, ids, mask, length)[0]
    assert not inputs["prompt_mask"].all()  # left padding is at work
    id_base = trainer.palette_model.config.latent_id_base
    for row in range(len(ids)):
        real = ids[row][mask[row].bool()].tolist()
        prefix = [token for token in real if token >= id_base]
        count = int(inputs["completion_mask"][row].sum())
        logits = spliced_logits(base, trainer.palette_model, prefix, real[len(prefix) :])
        log_probs = (logits / trainer.temperature).log_softmax(-1)
        first = len(real) - count
        expected = torch.stack([log_probs[i - 1, real[i]] for i in range(first, len(real))])
        torch.testing.assert_close(scored[row, :count], expected, atol=1e-5, rtol=0)
