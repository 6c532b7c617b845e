"""The coloured shapes as a grounding benchmark."""

from .benchmark import Benchmark
from .boxes import BOX_FORMATS
from .grounding import GroundingProblem, grounding_benchmark
from .shapes import STRATEGIES, Split, generate_scenes, label_strategy

BOX_FORMAT = BOX_FORMATS["qwen3_vl"]


def shapes_benchmark(split: Split = "test", num_problems: int = 200, seed: int = 0) -> Benchmark:
    """The first scenes of a split. Strategies are those of the searches, the strict reading is VLM-R1's.

    Args:
        split (`str`, *optional*, defaults to `"test"`): `"train"`, `"validation"` or `"test"`.
        num_problems (`int`, *optional*, defaults to 200): Number of scenes.
        seed (`int`, *optional*, defaults to 0): Seed of the draw; the split itself does not depend on it.
    """
    problems = []
    for scene in generate_scenes(split, num_problems, seed):
        image = scene.render()
        left, top, right, bottom = scene.target.bbox_xyxy
        problems.append(
            GroundingProblem(
                expression=scene.question,
                question=scene.question,
                bbox_xyxy=(left, top, right, bottom),
                size=image.size,
                image=image,
            )
        )
    return grounding_benchmark(
        problems,
        BOX_FORMAT,
        protocol="vlm-r1",
        name=f"shapes-{split}-{num_problems}-seed{seed}",
        label=label_strategy,
        labels=tuple(STRATEGIES),
    )
