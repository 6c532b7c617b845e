"""Palette checkpoints on vLLM. Not part of a checkpoint: vLLM finds it by the installed package's entry point.

Read in the order of the data: `plugin` (what is registered), `server` and `middleware` (a request of the server),
`requests` (its arguments -> prefixes), `samples` and `responses` (samples apart, codes in the answer), `renderer`
(prompts -> vLLM's mixed prompts), `model` (the base's own model).
"""
