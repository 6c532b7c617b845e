"""
Writes the page of the families that carry a palette, from what the checks find here and now:

    python tests/families_page.py docs/families.md
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from family_checks import CHECKS, PROMPTS, TOKENS, TOLERANCE, Outcome, case_of, outcome
from text_families import FAMILIES, THROUGH_HOOK, is_known

from reasoning_palette.modeling_palette.supported_bases import UNSUPPORTED_MODEL_TYPES

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
AS_THE_BASE = "as the base"

INTRODUCTION = f"""\
# Model families

Every family below is built tiny and random from its config, gets a palette, and goes through the same checks. What
is expected comes from a stock copy of the base that knows nothing of palettes, with the prefix spliced into
`inputs_embeds` by hand, row by row, without pads and without a cache. A check passes at {TOLERANCE:.0e}; the numbers
are the largest differences found.

| check | what is compared |
| --- | --- |
| forward | logits behind prefixes of the prior and of a domain |
| left padding | the same for rows of {" and ".join(map(str, map(len, PROMPTS)))} tokens in one left-padded batch |
| generate | tokens of cached greedy decoding: with a prefix, against a loop without a cache; without, the base's |
| uncached | tokens of `generate(use_cache=False)`, with a prefix, against cached ones |
| reload | full and palette-only checkpoints: no key missing or unexpected, every tensor equal to the bit; logits |
| gradients | loss and gradients of all weights with a prefix; gradients relative to the largest |
| checkpointing | the same with gradient checkpointing |
| resize | forward and reload after `resize_token_embeddings` and with one of the new tokens |

"{AS_THE_BASE}": the base fails the same check without a palette; how is said below the table. Rows are then compared
one by one, without pads.
"""

UNKNOWN = """\
## Other families

A family that is neither here nor refused runs once when a palette is put on it: with the same vectors at some
positions, other token ids there, and latent ids, must give the same logits. If they do not, it is refused with the
numbers; if it cannot be run (weights on the meta device or under ZeRO-3, inputs beside token ids), a warning says so.
Models with code of their own (`trust_remote_code`) are always treated so, whatever model type they name.
"""


def families() -> list[str]:
    """The families of the installed transformers."""
    return [family for family in FAMILIES if is_known(family)]


def cell(check: str, found: Outcome) -> str:
    if found.difference is None:
        return AS_THE_BASE
    if check in TOKENS:
        return "equal"
    return f"{found.difference:.0e}" if found.difference else "0"


def page(report: Callable[[str], None] = lambda family: None) -> str:
    rows, notes = [], []
    for family in families():
        report(family)
        found = {check: outcome(family, check) for check in CHECKS}
        cells = [cell(check, each) for check, each in found.items()]
        rows.append(" | ".join([f"| `{family}`", type(case_of(family).base).__name__, *cells]) + " |")
        notes += [
            f"- `{family}`, {check}: {each.base_alone}" for check, each in found.items() if each.difference is None
        ]
    lines = [
        INTRODUCTION,
        f"Written by `python tests/families_page.py docs/families.md` with torch {torch.__version__.split('+')[0]} on "
        f"a CPU and transformers {transformers.__version__}: {len(rows)} families, none of which fails.\n",
        f"| family | class | {' | '.join(CHECKS)} |",
        "| --- " * (len(CHECKS) + 2) + "|",
        *rows,
        "\n## What the base does without a palette\n",
        "Learned or sinusoidal positions that count the pads, and recurrences that run over them, cannot be "
        "left-padded; XLM and XLNet decode behind a placeholder that their forward pass alone does not add.\n",
        *notes,
        "\n## Families whose `inputs_embeds` are no reference\n",
        "Palette space is the output of the input embedding. Here the reference is a hook on the stock embedding that "
        "overwrites the rows of the prefix, under the ids of pads.\n",
        *(f"- `{family}`: {reason}" for family, reason in THROUGH_HOOK.items()),
        "\nGemma 3n and Gemma 4 look their per-layer embeddings up by token id as well. A latent has none, so its "
        "positions take those of the pad, as the positions of images do in Gemma 4 itself.",
        "\n## Refused families\n",
        *(f"- `{model_type}`: {reason}" for model_type, reason in sorted(UNSUPPORTED_MODEL_TYPES.items())),
        f"\n{UNKNOWN}",
    ]
    return "\n".join(lines)


def committed_cells() -> dict[str, dict[str, str]]:
    """What the committed page says: family -> check -> cell."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): dict(zip(CHECKS, row[2:], strict=True)) for row in rows}


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else PAGE)
    text = page(lambda family: print(family, file=sys.stderr))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
