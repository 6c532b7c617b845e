"""Writes a palette's latents in two standard formats, for engines that run none of its code, and reads them back.

Strategy tokens: one draw of each domain becomes a named token sequence of a stock checkpoint, for transformers, vLLM
and whatever else reads the base. Prompt tuning: one of these latents becomes a PEFT adapter of the base. Then a Python
that cannot import `reasoning_palette` answers prompts from both, and the answers are compared with `generate`:

    python examples/08_export.py --model demo_output/palette --output_dir demo_output/exports

The adapter names a stock base, so a checkpoint whose base was trained further (`demo_output/sft`) gets none. It leaves
out the server: `vllm serve demo_output/exports/tokens`, and a request spells a strategy by its text in
`strategies.json` or, where the tokenizer has a chat template, by `chat_template_kwargs={"strategy": "math-0"}`.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

WITHOUT_THE_PACKAGE = "REASONING_PALETTE_HIDDEN"
LENGTH = 8


def export(model_name: str, folder: Path, seed: int, prompts: list[str], max_new_tokens: int) -> dict[str, list[str]]:
    """Write both exports; what `generate` answers under each strategy."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_name, trust_remote_code=True, dtype=torch.float32)
    if not model.config.domains:
        raise SystemExit(f"{model_name} has no domains. Add one with `add_domain`, as 02_train_vae.py does.")
    strategies = {f"{name}-0": {"domain": name, "latent_seed": seed} for name in sorted(model.config.domains)}
    record = model.export_strategy_tokens(folder / "tokens", strategies, num_prefix_tokens=LENGTH)
    guard = record["guard"]
    margin = f"{guard['smallest_margin']:,.0f} nats below the largest one where the export was checked"
    print(f"{len(strategies)} strategies in {folder / 'tokens'}; guard {guard['kind']!r} keeps their logits {margin}")
    first = next(iter(strategies))
    try:
        model.export_prompt_tuning(
            folder / "adapter", latent=record["strategies"][first]["code"], num_prefix_tokens=LENGTH
        )
        print(f"{first} as a PEFT adapter in {folder / 'adapter'}")
    except ValueError as error:
        print(f"no adapter: {error}")

    answers = {}
    for name, entry in record["strategies"].items():
        answers[name] = []
        for prompt in prompts:
            ids = model.tokenizer(prompt, return_tensors="pt").input_ids
            output = model.generate(
                ids,
                latent=entry["code"],
                num_prefix_tokens=LENGTH,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=model.tokenizer.pad_token_id,
            )
            answers[name].append(model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def read_back(folder: Path, expected: dict[str, list[str]], prompts: list[str], max_new_tokens: int) -> None:
    """Answer from the exports, as somebody who has transformers (and PEFT) alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokens")
    model = AutoModelForCausalLM.from_pretrained(folder / "tokens")
    texts = {
        name: entry["text"]
        for name, entry in json.loads((folder / "tokens" / "strategies.json").read_text())["strategies"].items()
    }
    arguments = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}

    def answer(model, prompt: str, **more) -> str:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, **arguments, **more)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    print(f"\n{type(model).__name__}, `reasoning_palette` not importable\n\n{prompts[0]}")
    for name, text in texts.items():
        found = [answer(model, text + prompt) for prompt in prompts]
        same = sum(one == other for one, other in zip(found, expected[name], strict=True))
        print(f"  {name:14s} {same} of {len(prompts)} answers as `generate(latent=)`: {found[0].strip()}")
    if (folder / "adapter").is_dir():
        from peft import AutoPeftModelForCausalLM

        name = next(iter(texts))
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
        found = [answer(adapted, prompt, use_cache=False) for prompt in prompts]
        same = sum(one == other for one, other in zip(found, expected[name], strict=True))
        print(f"  {name:14s} {same} of {len(prompts)} answers as `generate(latent=)`, through PEFT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo_output/palette", help="Folder or Hub id of a palette checkpoint.")
    parser.add_argument("--output_dir", default="demo_output/exports", help="Where to write; must be new or empty.")
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=["numbers 6 4 3 target 21", "numbers 9 2 5 target 13", "numbers 7 3 8 target 29"],
        help="The prompts.",
    )
    parser.add_argument("--max_new_tokens", type=int, default=60, help="Longest answer, in tokens.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")
    args = parser.parse_args()
    folder = Path(args.output_dir)
    if os.environ.get(WITHOUT_THE_PACKAGE):
        if importlib.util.find_spec("reasoning_palette") is not None:
            raise SystemExit("`reasoning_palette` can be imported here: uninstall it, or install it with --editable.")
        read_back(folder, json.load(sys.stdin), args.prompts, args.max_new_tokens)
        return
    answers = export(args.model, folder, args.seed, args.prompts, args.max_new_tokens)
    sys.stdout.flush()
    # -S skips the .pth files through which an editable install is found; PYTHONPATH brings back everything else.
    site = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site), WITHOUT_THE_PACKAGE: "1"}
    command = [sys.executable, "-S", *sys.argv]
    raise SystemExit(subprocess.run(command, env=environment, input=json.dumps(answers), text=True).returncode)


if __name__ == "__main__":
    main()
