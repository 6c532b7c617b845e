"""Uses a palette checkpoint as somebody who has never heard of this package: transformers alone, in a fresh process.

The checkpoint carries its own code. This script starts a Python that cannot import `reasoning_palette` (and says so if
it can), loads the folder through the stock text-generation pipeline with `trust_remote_code=True`, and answers one
prompt under two domains, without a latent, and from a replayed code:

    python examples/07_use_checkpoint.py --model demo_output/grpo

It leaves out the Hub: the folder may as well be a Hub id.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig

WITHOUT_THE_PACKAGE = "REASONING_PALETTE_HIDDEN"


def answer(model: str, prompt: str, max_new_tokens: int) -> None:
    """One prompt, several latents, through the stock pipeline."""
    from transformers import pipeline

    generator = pipeline("text-generation", model=model, trust_remote_code=True)
    domains = sorted(generator.model.config.domains)[:2]
    if len(domains) < 2:
        raise SystemExit(f"{model} has {len(domains)} domains; two are needed to compare. Add them with `add_domain`.")
    print(f"\n{type(generator.model).__name__} from {model}, `reasoning_palette` not importable\n\n{prompt}")
    requests = [
        ("no latent", {}),
        *((f"domain={name!r}", {"domain": name, "latent_seed": 0}) for name in domains),
        ("latent=1234", {"latent": 1234}),
        ("latent=1234, again", {"latent": 1234}),
    ]
    for name, arguments in requests:
        output = generator(prompt, max_new_tokens=max_new_tokens, do_sample=False, return_full_text=False, **arguments)
        print(f"  {name:24s} {output[0]['generated_text'].strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo_output/grpo", help="Folder or Hub id of a palette checkpoint.")
    parser.add_argument("--prompt", default="numbers 6 4 3 target 21", help="The prompt.")
    parser.add_argument("--max_new_tokens", type=int, default=60, help="Longest answer, in tokens.")
    args = parser.parse_args()
    if os.environ.get(WITHOUT_THE_PACKAGE):
        if importlib.util.find_spec("reasoning_palette") is not None:
            raise SystemExit("`reasoning_palette` can be imported here: uninstall it, or install it with --editable.")
        answer(args.model, args.prompt, args.max_new_tokens)
        return
    # -S skips the .pth files through which an editable install is found; PYTHONPATH brings back everything else.
    site = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site), WITHOUT_THE_PACKAGE: "1"}
    raise SystemExit(subprocess.call([sys.executable, "-S", *sys.argv], env=environment))


if __name__ == "__main__":
    main()
