"""Evaluation: accuracy at a sample budget, testbeds, public benchmarks, and methods side by side."""

from typing import TYPE_CHECKING, Any

from .benchmark import Benchmark, countdown_benchmark
from .boxes import BOX_FORMATS, BoxFormat, box_format_of, box_iou
from .choice_grader import ChoiceProblem, grade_choice
from .code_grader import CodeGrader, CodeProblem
from .diversity import distinct_n, entropy, latent_contrast, mutual_information, vendi_score
from .evaluate import evaluate_palette
from .grounding import GroundingProblem, grounding_benchmark, table_2_methods
from .grounding_reward import box_format_reward, iou_reward
from .math_grader import MathGrader
from .method import Method
from .paired_bootstrap import bootstrap_interval, paired_bootstrap
from .pass_at_k import maj_at_k, pass_at_k
from .result import EvaluationResult, MethodResult

if TYPE_CHECKING:
    from .draw_boxes import draw_results
    from .grounding_data import load_grounding
    from .public_benchmarks import load_benchmark

__all__ = [
    "BOX_FORMATS",
    "Benchmark",
    "BoxFormat",
    "ChoiceProblem",
    "CodeGrader",
    "CodeProblem",
    "EvaluationResult",
    "GroundingProblem",
    "MathGrader",
    "Method",
    "MethodResult",
    "bootstrap_interval",
    "box_format_of",
    "box_format_reward",
    "box_iou",
    "countdown_benchmark",
    "distinct_n",
    "draw_results",
    "entropy",
    "evaluate_palette",
    "grade_choice",
    "grounding_benchmark",
    "iou_reward",
    "latent_contrast",
    "load_benchmark",
    "load_grounding",
    "maj_at_k",
    "mutual_information",
    "paired_bootstrap",
    "pass_at_k",
    "table_2_methods",
    "vendi_score",
]


def __getattr__(name: str) -> Any:
    # what needs `datasets` and Pillow is imported when it is used
    if name == "load_grounding":
        from .grounding_data import load_grounding

        return load_grounding
    if name == "load_benchmark":
        from .public_benchmarks import load_benchmark

        return load_benchmark
    if name == "draw_results":
        from .draw_boxes import draw_results

        return draw_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
