"""Evaluation: accuracy at a sample budget, the countdown testbed, grounding, and methods side by side."""

from typing import TYPE_CHECKING, Any

from .benchmark import Benchmark, countdown_benchmark
from .boxes import BOX_FORMATS, BoxFormat, box_format_of, box_iou
from .evaluate import evaluate_palette
from .grounding import GroundingProblem, grounding_benchmark, table_2_methods
from .grounding_reward import box_format_reward, iou_reward
from .method import Method
from .pass_at_k import maj_at_k, pass_at_k
from .result import EvaluationResult, MethodResult

if TYPE_CHECKING:
    from .draw_boxes import draw_results
    from .grounding_data import load_grounding

__all__ = [
    "BOX_FORMATS",
    "Benchmark",
    "BoxFormat",
    "EvaluationResult",
    "GroundingProblem",
    "Method",
    "MethodResult",
    "box_format_of",
    "box_format_reward",
    "box_iou",
    "countdown_benchmark",
    "draw_results",
    "evaluate_palette",
    "grounding_benchmark",
    "iou_reward",
    "load_grounding",
    "maj_at_k",
    "pass_at_k",
    "table_2_methods",
]


def __getattr__(name: str) -> Any:
    # what needs `datasets` and Pillow is imported when it is used
    if name == "load_grounding":
        from .grounding_data import load_grounding

        return load_grounding
    if name == "draw_results":
        from .draw_boxes import draw_results

        return draw_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
