"""The processor of the coloured shapes: Qwen3-VL's own, with one token per word, edge of a box and mark."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from .shapes import COLOURS, COLUMNS, NUM_UNITS, ROWS, SHAPES, STRATEGIES, UNIT_THOUSANDTHS

PAD, UNKNOWN = "<|endoftext|>", "<unk>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
# Marks that a reader of answers needs are ordinary tokens, as in Qwen3: `skip_special_tokens` leaves them.
MARKS = ("<think>", "</think>", "<answer>", "</answer>")

PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE = 8, 2, 2

# ChatML as in Qwen3-VL. Line breaks and blanks between words are no tokens.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_processor() -> Qwen3VLProcessor:
    """Builds the processor, from nothing but the constants of the task.

    It pads on the left, as generation wants. A turn ends in `<|im_end|>`, which is EOS. A picture of 64 x 64 pixels is
    64 patches and 16 tokens; pictures from 32 x 32 to 160 x 160 keep their size, up to multiples of 16.

    Returns:
        `Qwen3VLProcessor`
    """
    tokenizer = _build_tokenizer()
    vision = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 32 * 32, "longest_edge": 160 * 160},
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Words carry the blank in front of them, so that decoded text is the text that was written."""
    words = ["user", "assistant", "system", "locate", "the", "at", "yes", "no", '{"bbox_2d":', "["]
    words += [strategy.word for strategy in STRATEGIES.values()]
    words += [*COLOURS, *SHAPES, *ROWS, *COLUMNS]
    special = [PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO, UNKNOWN]
    plain = [",", "]}", *(str(UNIT_THOUSANDTHS * edge) for edge in range(NUM_UNITS + 1))]
    tokens = [*special, *MARKS, *plain, *("▁" + word for word in words)]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"▁?\[|\]\}|,"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        unk_token=UNKNOWN,
        additional_special_tokens=[TURN_START, VISION_START, VISION_END, IMAGE, VIDEO],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
