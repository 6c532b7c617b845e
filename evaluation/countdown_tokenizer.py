"""The tokenizer of the countdown family: one token per word, operator and number."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from .countdown import LARGEST_VALUE, STRATEGIES

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer, from nothing but the constants of the family.

    It pads on the left, as generation wants, and puts nothing in front of a text. A worked example ends in `<eos>`.

    Returns:
        `PreTrainedTokenizerFast`: 120 tokens or so.
    """
    words = ["numbers", "target", "answer", "none", "yes", "no", "->", "(", ")", "*", "+", "-"]
    words += [strategy.word for strategy in STRATEGIES.values()]
    words += [str(number) for number in range(LARGEST_VALUE + 1)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
