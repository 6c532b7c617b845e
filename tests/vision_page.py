"""
Writes the page of the vision-language families that carry a palette, from what the checks find here and now:

    python tests/vision_page.py docs/vision_families.md
"""

import sys
from pathlib import Path

import torch
import transformers
from vision_checks import CHECKS, LENGTH, NEW_TOKENS, ROWS, TOLERANCE, case_of, outcome
from vision_families import FAMILIES, is_known

PAGE = Path(__file__).parent.parent / "docs" / "vision_families.md"

INTRODUCTION = f"""\
# Vision-language families

`PaletteForVision2Seq` puts a palette on these families. Each is built tiny and random from its config, with its real
processor around a tokenizer of words, and goes through the same checks. The prompts are {len(ROWS)}: one with an
image, one of text alone, and one with two images of different sizes; {LENGTH} prefix tokens stand in front of each.

What is expected comes from a stock copy of the base that knows nothing of palettes, and is written out by hand, row by
row, without pads, without a cache and without the base's own merging of text and images: rows of the input embedding,
the vision tower's rows in place of the placeholders, the prefix in front, then positions (M-RoPE counted by hand),
masks (Gemma), the features of deeper layers (Qwen3-VL) and the per-layer inputs (Gemma 4). Only the language model and
its head are run on that. A check passes at {TOLERANCE:.0e}; the numbers are the largest differences found.

| check | what is compared |
| --- | --- |
| reference | logits without a prefix: the hand-written reference against the base itself |
| forward | logits of each row behind its prefix, of the prior or a domain |
| left padding | the same for all rows in one left-padded batch of the processor |
| generate | logits of {NEW_TOKENS} cached greedy steps on that batch; without a prefix, exactly the base's |
| uncached | logits of `generate(use_cache=False)` behind prefixes, against those with a cache |
| reload | full and palette-only checkpoints: no key missing or unexpected, every tensor equal to the bit; logits |
| gradients | loss and gradients of all weights, the vision tower's too; gradients relative to the largest |
| checkpointing | the same with gradient checkpointing |
| resize | forward and reload after `resize_token_embeddings` and with one of the new tokens |

Reload goes through `AutoModelForImageTextToText` and `AutoModel`, and finds the processor; beside the palette's, the
keys in the file are those in the base's own file.
"""

OTHERS = """\
## Other families

Any other class of `AutoModelForImageTextToText` is checked with text when a palette is put on it, as
[other text families](families.md#other-families) are, and a warning says that its images were not. Gemma 3n, the
first Idefics, Kosmos-2 and Llama 3.2 Vision (Mllama) are [refused](families.md#refused-families), and so are
encoder-decoders.

## Limits

- `num_return_sequences` above 1 with a prefix, for several prompts with images in one batch, needs to know which image
  belongs to which prompt. In the families above it is known; elsewhere it is refused, and one prompt at a time works.
- `export_strategy_tokens` and `export_prompt_tuning` are for text models.
- `AutoModelForCausalLM` refuses these palettes, also where it takes the base (Gemma 3 and 4): the kind of a palette is
  the kind of its base's config. A palette on the text model of such a base is one of `PaletteForCausalLM`.
- With M-RoPE (Qwen), a prompt's length is checked in positions, of which an image takes as many as its longer side has
  tokens.
"""


def families() -> list[str]:
    """The families of the installed transformers."""
    return [family for family in FAMILIES if is_known(family)]


def cell(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def page() -> str:
    rows = []
    for family in families():
        print(family, file=sys.stderr)
        cells = [cell(outcome(family, check)) for check in CHECKS]
        rows.append(" | ".join([f"| `{family}`", type(case_of(family).base).__name__, *cells]) + " |")
    lines = [
        INTRODUCTION,
        "Written by `python tests/vision_page.py docs/vision_families.md` with torch "
        f"{torch.__version__.split('+')[0]} on a CPU and transformers {transformers.__version__}.\n",
        f"| family | class | {' | '.join(CHECKS)} |",
        "| --- " * (len(CHECKS) + 2) + "|",
        *rows,
        f"\n{OTHERS}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page())
