"""Which card a push publishes: one that was given, else one that is there already, else a new one."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError

from .palette_card import hub_name, link, new_card, refresh_card

CARD = "README.md"
_SHOWN = re.compile(r"\]\(([^)\s:#]+)\)")  # a link or an image that lies beside the card
# What a card shows and no loader reads: a link in somebody's card must not put weights or code into a push.
_SHOWABLE = (".png", ".jpg", ".jpeg", ".svg", ".webp", ".gif", ".csv", ".md", ".html", ".json")
_READ_BY_LOADERS = re.compile(
    r"(.*(config|index|tokenizer|vocab|added_tokens|special_tokens|chat_template).*|modules|strategies|trainer_state)"
    r"\.json",
    re.IGNORECASE,
)
_COMMIT = re.compile("[0-9a-f]{40}")


def put_card(
    model: Any,
    folder: Path,
    repo_id: str,
    *,
    palette_only: bool,
    tags: list[str],
    given: str | Path | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
) -> list[str]:
    """
    Put the card, and what it shows, into a folder that is to be uploaded.

    In this order: the given one; the folder's own; the repository's; that of the checkpoint that the model was loaded
    from, with what it shows; a new one. Of a card that is there already, what the model itself can vouch for is
    written anew and everything else stays. What a card shows are the images, tables and pages that it links to; links
    to weights, code, configs and files outside of its folder are not followed.

    Args:
        model ([`PaletteForCausalLM`]): The model.
        folder (`Path`): The folder.
        repo_id (`str`): The repository.
        palette_only (`bool`): Whether the folder holds the palette alone.
        tags (`list[str]`): Tags of the card, beside those that it has.
        given (`str` or `Path`, *optional*): A card, or a folder with `README.md` and the files that it shows,
            which [`copy_given`] has put into `folder`.
        revision (`str`, *optional*): The branch that is pushed to.
        token (`bool` or `str`, *optional*): Token of the Hub.

    Returns:
        `list[str]`: The files of the folder to upload with it.

    Warns:
        if folder and repository have a card each: both stay as they are, and neither is uploaded.
    """
    shown: list[str] = []
    if given is not None:
        card, shown = ModelCard.load(card_file(given)), [name for name in _files_of(Path(given)) if name != CARD]
    else:
        own = ModelCard.load(folder / CARD) if (folder / CARD).is_file() else None
        published = _card_on_hub(repo_id, revision, token)
        if own is not None and published is not None and own.content != published.content:
            warnings.warn(
                f"{str(folder / CARD)!r} was not uploaded: {repo_id} has a card of its own, which is another one, and "
                f"stays. To replace it, pass the card: push_to_hub(..., card={str(folder / CARD)!r}).",
                stacklevel=4,
            )
            return []
        kept, measured_on = own or published, "an earlier commit of this repository" if published else None
        if kept is None:
            kept, measured_on, shown = _card_of_source(model, folder, token)
        else:
            shown = [name for name in _shown(kept) if _holds(folder, name)]
        if kept is None:
            card = new_card(model, repo_id, palette_only)
        else:
            card = refresh_card(kept, model, repo_id, palette_only, measured_on=measured_on)
    present = card.data.tags or []
    card.data.tags = list(dict.fromkeys([*([present] if isinstance(present, str) else present), *tags])) or None
    card.save(folder / CARD)
    return [CARD, *shown]


def _files_of(given: Path) -> list[str]:
    if not given.is_dir():
        return []
    return [path.relative_to(given).as_posix() for path in sorted(given.rglob("*")) if path.is_file()]


def card_file(given: str | Path) -> Path:
    """The card that `given` names: a file, or `README.md` of a folder."""
    source = Path(given) / CARD if Path(given).is_dir() else Path(given)
    if not source.is_file():
        raise FileNotFoundError(
            f"`card` is {str(given)!r}, where there is no card. Pass a README.md, or the folder of one."
        )
    return source


def copy_given(given: str | Path, folder: Path) -> None:
    """Copy what a given card shows into the folder of a checkpoint."""
    card_file(given)
    names = [name for name in _files_of(Path(given)) if name != CARD]
    taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise ValueError(
            f"`card`={str(given)!r} holds {taken[0]!r}, which is also a file of the checkpoint. Keep README.md and "
            "what it shows in that folder, and nothing else."
        )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(given) / name, folder / name)


def _card_on_hub(repo_id: str, revision: str | None, token: bool | str | None) -> ModelCard | None:
    """The card of a branch, of the branch that it would start from, or None."""
    for branch in dict.fromkeys((revision, None)):
        try:
            return ModelCard.load(hf_hub_download(repo_id, CARD, revision=branch, token=token))
        except LocalEntryNotFoundError:  # the Hub cannot be reached: no reason to take its card for missing
            raise
        except RevisionNotFoundError:
            continue
        except EntryNotFoundError:
            return None
    return None


def _card_of_source(
    model: Any, folder: Path, token: bool | str | None
) -> tuple[ModelCard | None, str | None, list[str]]:
    """The card of the checkpoint that the model was loaded from, what it is called, and the files that it shows."""
    name = model.config.name_or_path
    if not name:
        return None, None, []
    here = Path(name)
    if here.is_dir():
        if not (here / CARD).is_file():
            return None, None, []
        card = ModelCard.load(here / CARD)
        shown = _copy_shown(card, folder, lambda file: here / file if _holds(here, file) else None)
        return card, "the checkpoint that this one was made from", shown
    if hub_name(name) is None:
        return None, None, []
    # transformers keeps the code of a repository in a folder that has the commit's name
    running = Path(__file__).resolve().parent.name
    revision = model._location.get("revision")
    revision = running if _COMMIT.fullmatch(running) else getattr(revision, "resolved", revision)
    location: dict[str, Any] = {"revision": revision, "token": token or model._location.get("token")}
    location["cache_dir"] = model._location.get("cache_dir")
    try:
        path = Path(hf_hub_download(name, CARD, **location))
        location["revision"] = commit = path.parent.name  # a snapshot's folder is named by its commit
        card = ModelCard.load(path)
        shown = _copy_shown(card, folder, lambda file: Path(hf_hub_download(name, file, **location)))
    except Exception as error:  # the repository may be gone by now: what is pushed does not depend on it
        if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
            warnings.warn(
                f"The card of {name!r}, which this model was loaded from, could not be read, so what was measured "
                f"there is not in the card that is pushed: {error}",
                stacklevel=5,
            )
        return None, None, []
    return card, link(name, commit), shown


def _shown(card: ModelCard) -> list[str]:
    """What a card shows that lies in its own repository, without ways out of it."""
    names = [name for name in dict.fromkeys(_SHOWN.findall(card.text)) if name.lower().endswith(_SHOWABLE)]
    names = [name for name in names if not name.startswith(("/", "\\")) and ".." not in Path(name).parts]
    return [name for name in names if name != CARD and not _READ_BY_LOADERS.fullmatch(Path(name).name)]


def _holds(folder: Path, name: str) -> bool:
    """Whether a file lies in a folder itself: a symbolic link may show what lies anywhere on this machine."""
    path = folder / name
    return path.is_file() and path.resolve() == folder.resolve() / Path(name)


def _copy_shown(card: ModelCard, folder: Path, fetch: Any) -> list[str]:
    copied = []
    for name in _shown(card):
        if (folder / name).exists():
            continue
        try:
            source = fetch(name)
        except EntryNotFoundError:
            continue
        if source is not None and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
            copied.append(name)
    return copied
