r"""
The decoding matrix: all of its cases, and the page that is made from them.

    python tests/decoding_matrix.py     # runs every case and writes docs/decoding.md
"""

import sys
from pathlib import Path

import decoding_assisted  # noqa: F401
import decoding_caches  # noqa: F401
import decoding_engines  # noqa: F401
import decoding_inputs  # noqa: F401
import decoding_outputs  # noqa: F401
import decoding_pipelines  # noqa: F401
import decoding_search  # noqa: F401
import decoding_streams  # noqa: F401
import pytest
import torch
from decoding_cases import TABLE
from decoding_settings import CHECKS, Case, compare, setting

PAGE = Path(__file__).resolve().parent.parent / "docs" / "decoding.md"
GROUPS = [
    "Search",
    "Sampling",
    "Logits processors",
    "Lengths and stopping",
    "Caches",
    "Assisted decoding",
    "Guidance and watermarks",
    "Outputs",
    "Streaming",
    "Pipelines",
    "Inputs",
    "Configuration",
    "Continuous batching",
    "Loops of your own",
    "Moved out of transformers",
]
CASES = sorted([*TABLE, *CHECKS], key=lambda case: GROUPS.index(case.group))
HEADER = """# Decoding

<!-- Made by `python tests/decoding_matrix.py`. `tests/test_decoding.py` runs every line and compares. -->

What works with a latent prefix, each line of it run by the tests. *Equal* means: token for token what a loop without a
cache gives that is written by hand in the tests, on a stock base, on unpadded rows with the decoded latents spliced
into `inputs_embeds`, with the processors applied to the ordinary ids. *Rows* counts the sequences compared; they come
from left-padded batches of prompts of different lengths, each with a latent of its own. Lines that make sense without
a prefix are compared without one as well, there with the base's own `generate` too. *As on the base* means that the
base raises the same error.

Rules that hold throughout: whatever reads token ids (processors, stopping criteria, streamers, assistants, watermarks)
sees prompt and completion without the prefix; lengths in total tokens count prompt and completion; returned sequences
never hold a latent id; hidden states, attentions and caches have the prefix in them.
"""


def outcome(case: Case, name: str) -> str:
    """Runs a case in a setting."""
    result = compare(case, setting(name))
    return result if isinstance(result, str) else f"equal, {result} row{'s' * (result > 1)}"


def line(case: Case, outcomes: dict[str, str]) -> str:
    """A line of the table; `outcomes` by setting."""
    found = sorted(set(outcomes.values()))
    said = found[0] if len(found) == 1 else "; ".join(f"{name}: {what}" for name, what in outcomes.items())
    cells = (case.name, "; ".join(case.settings), said, case.note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(outcomes: dict[tuple[str, str], dict[str, str]]) -> str:
    """The page; `outcomes` by group and name of a case, and by setting."""
    parts = [HEADER]
    for group in GROUPS:
        parts.append(f"## {group}\n\n| | models | outcome | note |\n| --- | --- | --- | --- |")
        parts[-1] += "".join(
            "\n" + line(case, outcomes[case.group, case.name])
            for case in CASES
            if case.group == group and (case.group, case.name) in outcomes
        )
        parts[-1] += "\n"
    return "\n".join(parts)


def main() -> None:
    torch.set_num_threads(1)  # models this small lose by a second thread
    outcomes: dict[tuple[str, str], dict[str, str]] = {}
    for case in CASES:
        try:
            outcomes[case.group, case.name] = {name: outcome(case, name) for name in case.settings}
        except pytest.skip.Exception as reason:
            sys.exit(f"{case.name} cannot be run here: {reason}. Make the page where everything can be run.")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(outcomes))
    print(f"{PAGE}: {len(outcomes)} lines")


if __name__ == "__main__":
    main()
