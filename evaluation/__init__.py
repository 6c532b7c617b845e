"""Evaluation: accuracy at a sample budget, the countdown testbed, and methods side by side."""

from .benchmark import Benchmark, countdown_benchmark
from .evaluate import evaluate_palette
from .method import Method
from .pass_at_k import maj_at_k, pass_at_k
from .result import EvaluationResult, MethodResult

__all__ = [
    "Benchmark",
    "EvaluationResult",
    "Method",
    "MethodResult",
    "countdown_benchmark",
    "evaluate_palette",
    "maj_at_k",
    "pass_at_k",
]
