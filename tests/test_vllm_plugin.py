"""The plugin where there is no vLLM, or one whose registries have moved; the real engine is in test_vllm.py."""

import importlib.util
import logging

import pytest

from reasoning_palette.modeling_palette.vllm_serving.plugin import register, register_palettes


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here: test_vllm.py")
def test_a_plugin_that_cannot_register_lets_vllm_serve_other_models(caplog):
    with caplog.at_level(logging.WARNING):
        register()
    assert "vLLM will not read palette checkpoints (reasoning-palette " in caplog.text
    assert "vllm (unknown version)" in caplog.text
    with pytest.raises(ImportError):
        register_palettes()
