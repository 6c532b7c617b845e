"""A tokenizer for any text, with the chat template of Qwen 3, and a tiny model for it."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from trainer_testing import tiny_base, tiny_palette
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import qwen3_chat_template

from reasoning_palette.modeling_palette import PaletteForCausalLM

SPECIAL = ["<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def byte_tokenizer():
    """Bytes as tokens, an end-of-text token, and no chat template: that of a base."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096, **end)


def chat_tokenizer():
    """The same with Qwen 3's special tokens and chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.add_tokens(MARKERS)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


def chat_base(**config):
    tokenizer = chat_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return tiny_base(**{**settings, **config})


def chat_palette_model(**config):
    return PaletteForCausalLM.from_base(chat_base(**config), palette=tiny_palette(), tokenizer=chat_tokenizer())
