"""Refusals whose causes cannot be built from tiny text models on one process: the checks, with the cause put in."""

from types import SimpleNamespace

import pytest
from rollout_trainers import make_trainer as rollout_trainer
from sft_trainers import make_trainer as sft_trainer
from transformers import LlavaProcessor

TRAINERS = pytest.mark.parametrize("method", ["grpo", "rloo", "sft"])


def make_trainer(folder, method):
    return sft_trainer(folder) if method == "sft" else rollout_trainer(folder, method)


class With:
    """An object with some attributes replaced."""

    def __init__(self, original, **attributes):
        self.__dict__.update(attributes)
        self._original = original

    def __getattr__(self, name):
        return getattr(self._original, name)


@TRAINERS
@pytest.mark.parametrize("kind", ["cp_enabled", "sp_enabled"])
def test_rows_cut_into_pieces(tmp_path, method, kind):
    trainer = make_trainer(tmp_path, method)
    parallelism = SimpleNamespace(**{"cp_enabled": False, "sp_enabled": False, kind: True})
    trainer.accelerator = With(trainer.accelerator, parallelism_config=parallelism)
    with pytest.raises(ValueError, match=r"Set `cp_size=1` and `sp_size=1`, or `num_prefix_tokens=0`"):
        trainer.check_palette_setup()
    trainer.args.num_prefix_tokens = 0
    trainer.check_palette_setup()


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_images_with_vllm(tmp_path, method):
    processor = object.__new__(LlavaProcessor)
    trainer = make_trainer(tmp_path, method)
    trainer.args.use_vllm, trainer.processing_class = True, processor
    with pytest.raises(ValueError, match=r"is a LlavaProcessor, .* Set `use_vllm=False`, or `num_prefix_tokens=0`"):
        trainer.check_palette_setup()
