"""Evaluation of palettes: accuracy at a sample budget, the countdown testbed, and methods side by side."""

from .pass_at_k import maj_at_k, pass_at_k

__all__ = ["maj_at_k", "pass_at_k"]
