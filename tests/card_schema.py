"""What the Hub asks of a card's metadata, as far as that can be checked without the Hub; the stand-in asks it too."""

import re

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.pipelines import PIPELINE_REGISTRY

RELATIONS = ("adapter", "finetune", "merge", "quantized")
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "llama3", "gemma", "other")


def card_errors(path):
    """What is wrong with the metadata of one of our cards, which names its task; an empty list if nothing is."""
    text = path.read_text()
    errors = text_errors(text)
    return errors if errors or ModelCard(text).data.pipeline_tag else ["no pipeline_tag"]


def text_errors(text):
    """What is wrong with the metadata of any model's card; an empty list if nothing is."""
    block = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    if block is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(block.group(1))
        kept = ModelCardData(**data, ignore_metadata_errors=False)
        read = ModelCard(text).data.to_dict()
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        return [f"{type(error).__name__}: {error}"]
    errors = [] if read == data else ["huggingface_hub reads other metadata"]
    errors += [f"{name} is null" for name, value in data.items() if value is None]
    errors += _ids(data, "base_model") + _ids(data, "datasets")
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f"base_model_relation is {data['base_model_relation']!r}")
    if "base_model_relation" in data and "base_model" not in data:
        errors.append("base_model_relation without base_model")
    if data.get("pipeline_tag", "text-generation") not in PIPELINE_REGISTRY.get_supported_tasks():
        errors.append(f"pipeline_tag is {data['pipeline_tag']!r}")
    if data.get("license", "mit") not in LICENSES:
        errors.append(f"license is {data['license']!r}")
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and 0 < len(tag) <= 100 for tag in tags):
        errors.append(f"tags are {tags!r}")
    elif len(tags) != len(set(tags)):
        errors.append("a tag is there twice")
    errors += [error for model in data.get("model-index", []) for error in _index_errors(model)]
    if kept.to_dict().get("model-index") != data.get("model-index"):
        errors.append("the model-index does not survive huggingface_hub")
    return errors


def _ids(data, name):
    found = data.get(name) or []
    errors = []
    for value in [found] if isinstance(found, str) else found:
        try:
            validate_repo_id(value)
        except HFValidationError as error:
            errors.append(f"{name}: {error}")
    return errors


def _index_errors(model):
    errors = [] if isinstance(model.get("name"), str) and model["name"] else ["model-index without a name"]
    for result in model.get("results", [{}]):  # an empty list is what transformers' trainers write
        wanted = {"task": ("type",), "dataset": ("type", "name")}
        for part, names in wanted.items():
            errors += [f"no {part}.{name}" for name in names if not isinstance(result.get(part, {}).get(name), str)]
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float)):
                errors.append(f"metric {metric}")
    return errors
