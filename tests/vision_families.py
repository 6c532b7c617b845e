"""Tiny random models of transformers' vision-language families with their real processors, one row a family."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

WORDS = [f"w{number}" for number in range(20)]
# as the processors spell them, where they leave no choice
IMAGE, VIDEO, START, END = "<image>", "<|video|>", "<start_of_image>", "<end_of_image>"
FAKE, GLOBAL, TURN_END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
TILES = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
MARKS = [IMAGE, VIDEO, START, END, "<audio>", FAKE, GLOBAL, TURN_END, *TILES]
TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, *MARKS]
ID = {token: index for index, token in enumerate(TOKENS)}

TEXT: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
QWEN_TOWER = {"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
QWEN_IDS = {
    "image_token_id": ID[IMAGE],
    "video_token_id": ID[VIDEO],
    "vision_start_token_id": ID[START],
    "vision_end_token_id": ID[END],
}
# windows shorter than an image, so that they bite
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
SIDE = {"height": 16, "width": 16}


def tokenizer(**names: str) -> PreTrainedTokenizerFast:
    """One token a word, padded on the left. `names`: what a processor calls a token -> the token."""
    inner = Tokenizer(WordLevel(ID, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.add_special_tokens([AddedToken(token, special=True) for token in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")},
        extra_special_tokens={f"{name}_token": token for name, token in names.items()},
        padding_side="left",
        model_max_length=512,
    )


def qwen_parts() -> tuple[Any, PreTrainedTokenizerFast]:
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    names = {"image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END}
    return images, tokenizer(**names)


def qwen3_processor() -> Qwen3VLProcessor:
    return Qwen3VLProcessor(*qwen_parts(), Qwen3VLVideoProcessor(patch_size=4))


def gemma_text() -> PreTrainedTokenizerFast:
    # Gemma 4's processor asks for the marks of sounds even where there are none.
    return tokenizer(boi=START, eoi=END, image=IMAGE, audio="<audio>", boa="<audio>", eoa="<audio>")


def idefics_text() -> PreTrainedTokenizerFast:
    return tokenizer(image=IMAGE, fake_image=FAKE, global_image=GLOBAL, end_of_utterance=TURN_END, video=VIDEO)


IDEFICS_SIZES = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
IDEFICS = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {**TOWER, "image_size": 16},
    "image_token_id": ID[IMAGE],
    "scale_factor": 2,
}


@dataclass
class Family:
    """
    Args:
        config (`dict`): What the family's config needs.
        processor (callable): Builds its processor.
        image (`str`): What stands for an image in a prompt.
    """

    config: dict[str, Any]
    processor: Callable[[], Any]
    image: str = IMAGE


def mrope(*sections: int, **more: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LINEAR_THEN_FULL = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
}
QWEN3_TOWER = {**QWEN_TOWER, "out_hidden_size": 32, "num_position_embeddings": 64}
QWEN_IMAGE = f"{START} {IMAGE} {END}"

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": mrope(1, 1, 2)},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
            **QWEN_IDS,
        },
        lambda: Qwen2VLProcessor(*qwen_parts(), Qwen2VLVideoProcessor(patch_size=4)),
        QWEN_IMAGE,
    ),
    "qwen2_5_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": mrope(1, 1, 2)},
            "vision_config": {**QWEN_TOWER, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 16},
            **QWEN_IDS,
        },
        lambda: Qwen2_5_VLProcessor(*qwen_parts(), Qwen2VLVideoProcessor(patch_size=4)),
        QWEN_IMAGE,
    ),
    "qwen3_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": mrope(2, 1, 1)},
            "vision_config": {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
            **QWEN_IDS,
        },
        qwen3_processor,
        QWEN_IMAGE,
    ),
    "qwen3_vl_moe": Family(
        {
            "text_config": {**TEXT, **EXPERTS, "rope_parameters": mrope(2, 1, 1)},
            "vision_config": {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
            **QWEN_IDS,
        },
        qwen3_processor,
        QWEN_IMAGE,
    ),
    "qwen3_5": Family(
        {
            "text_config": {**TEXT, **LINEAR_THEN_FULL, "rope_parameters": mrope(2, 1, 1, partial_rotary_factor=1.0)},
            "vision_config": QWEN3_TOWER,
            **QWEN_IDS,
        },
        qwen3_processor,
        QWEN_IMAGE,
    ),
    "qwen3_5_moe": Family(
        {
            "text_config": {
                **TEXT,
                **EXPERTS,
                **LINEAR_THEN_FULL,
                "rope_parameters": mrope(2, 1, 1, partial_rotary_factor=1.0),
            },
            "vision_config": QWEN3_TOWER,
            **QWEN_IDS,
        },
        qwen3_processor,
        QWEN_IMAGE,
    ),
    "gemma3": Family(
        {
            "text_config": {**TEXT, **WINDOWS},
            "vision_config": {"model_type": "siglip_vision_model", **TOWER, "image_size": 16},
            "mm_tokens_per_image": 4,
            "image_token_index": ID[IMAGE],
            "boi_token_index": ID[START],
            "eoi_token_index": ID[END],
        },
        lambda: Gemma3Processor(Gemma3ImageProcessor(size=SIDE), gemma_text(), image_seq_length=4),
        START,
    ),
    "gemma4": Family(
        {
            "text_config": {
                **TEXT,
                **WINDOWS,
                "global_head_dim": 8,
                "vocab_size_per_layer_input": len(TOKENS),
                "hidden_size_per_layer_input": 8,
                "use_bidirectional_attention": "vision",
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {
                **TOWER,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "pooling_kernel_size": 3,
                "position_embedding_size": 64,
            },
            "audio_config": None,
            "image_token_id": ID[IMAGE],
            "video_token_id": ID[VIDEO],
            "audio_token_id": ID["<audio>"],
            "boi_token_id": ID[START],
            "eoi_token_id": ID[END],
        },
        lambda: Gemma4Processor(
            Gemma4AudioFeatureExtractor(),
            Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
            gemma_text(),
            Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3),
        ),
    ),
    "llava": Family(
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **TOWER, "image_size": 16},
            "vision_feature_layer": -2,
            "image_token_index": ID[IMAGE],
            "image_seq_length": 16,
        },
        lambda: LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIDE),
            tokenizer(image=IMAGE),
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
    ),
    "idefics3": Family(
        IDEFICS,
        lambda: Idefics3Processor(Idefics3ImageProcessor(**IDEFICS_SIZES), idefics_text(), image_seq_len=4),
    ),
    "smolvlm": Family(
        IDEFICS,
        lambda: SmolVLMProcessor(
            SmolVLMImageProcessor(**IDEFICS_SIZES), idefics_text(), SmolVLMVideoProcessor(), image_seq_len=4
        ),
    ),
    "internvl": Family(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {**TOWER, "patch_size": [4, 4], "image_size": [16, 16]},
            "image_token_id": ID[IMAGE],
            "image_seq_length": 4,
        },
        lambda: InternVLProcessor(
            GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4),
            tokenizer(start_image=START, end_image=END, context_image=IMAGE, video=VIDEO),
            InternVLVideoProcessor(size=SIDE),
            image_seq_length=4,
        ),
    ),
}


def is_known(family: str) -> bool:
    """Whether the installed transformers has this family."""
    return family in CONFIG_MAPPING


def tiny_config(family: str) -> PreTrainedConfig:
    return CONFIG_MAPPING[family](**copy.deepcopy(FAMILIES[family].config))


def tiny_base(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_config(tiny_config(family))
    for parameter in base.parameters():
        if parameter.dim() > 1:  # the stock scale makes every logit alike, and greedy decoding a tie
            torch.nn.init.normal_(parameter, std=0.2)
    base.generation_config.eos_token_id = None  # every row runs to its full length
    base.generation_config.pad_token_id = 0
    base.generation_config.suppress_tokens = [ID[mark] for mark in MARKS]  # an answer holds no images
    return base.eval()


def picture(height: int, width: int) -> Image.Image:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
