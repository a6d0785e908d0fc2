"""Weights that open_clip publishes: their tags, and their files from the cache or the network."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import WeightsError, suggest

_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PATIENCE = 10  # seconds for a host to answer at all


def tags(name: str) -> list[str]:
    """Return the tags of the weights that open_clip publishes for backbone ``name``."""
    from open_clip import pretrained

    return list(pretrained.list_pretrained_tags_by_model(name))


def entry(name: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows about weights ``tag``: ``hub`` (repository/file), ``url``, ``quick_gelu``.

    Raises:
        WeightsError: if there is no such tag, with the nearest one.
    """
    from open_clip import pretrained

    found = pretrained.get_pretrained_cfg(name, tag)
    if not found:
        known = suggest(tag, [*tags(name), "random"])
        raise WeightsError(f"no weights '{tag}' are published for backbone '{name}'.{known}")
    hub, url = found.get("hf_hub", ""), found.get("url", "")
    # One repository serves two tags (ViT-B-16-plus-240: e31 for e32 too); the URL has the right file.
    other = hub.rstrip("/").rpartition(".")[2]
    if url and other != tag and other in tags(name):
        hub = ""
    return {"hub": hub, "url": url, "quick_gelu": bool(found.get("quick_gelu", False))}


def fetch(name: str, tag: str) -> Path:
    """Return the file of weights ``tag``, downloading it on first use; one in the cache needs no network.

    Raises:
        WeightsError: naming the file to fetch on another machine when the download fails.
    """
    return obtain(entry(name, tag), f"{name}/{tag}", "--weights FILE")


def missing(name: str, tag: str) -> str:
    """Return in words what to fetch for weights ``tag``, from where, with which digest; empty if it is here.

    Raises:
        WeightsError: if there is no such tag.
    """
    published = entry(name, tag)
    if _cached(published):
        return ""
    digest = published_digest(published["url"])
    return f"{_whereabouts(published)}{f' (SHA-256 {digest})' if digest else ''}"


def published_digest(url: str) -> str:
    """Return the digest, or its first 8 digits, that stands in the address of published weights."""
    found = re.search(r"/([0-9a-f]{64})/|-([0-9a-f]{8})\.pt$", url)
    return next(filter(None, found.groups()), "") if found else ""


def obtain(published: dict[str, Any], what: str, option: str) -> Path:
    """Return the file of ``published`` (``hub``, ``url``), downloading it on first use.

    Raises:
        WeightsError: naming ``what`` could not be downloaded, and the ``option`` that takes a file.
    """
    try:
        return _from_hub(published["hub"]) if published["hub"] else _from_url(published["url"])
    except Exception as error:
        raise WeightsError(
            f"weights {what} are not on this machine and could not be downloaded ({_reason(error)}); "
            f"fetch {_whereabouts(published)} elsewhere and pass it with {option}"
        ) from error


def _from_hub(hub: str) -> Path:
    import huggingface_hub
    from open_clip import pretrained

    if cached := _cached_from_hub(hub):
        return cached
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        _knock(huggingface_hub.constants.ENDPOINT)
    return Path(pretrained.download_pretrained({"hf_hub": hub}))


def _cached(published: dict[str, Any]) -> Path | None:
    if published["hub"]:
        return _cached_from_hub(published["hub"])
    return _cached_from_url(published["url"])


def _cached_from_hub(hub: str) -> Path | None:
    import huggingface_hub

    repository, _, file = hub.rpartition("/")
    for candidate in [file] if file else _HUB_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _cached_from_url(url: str) -> Path | None:
    path = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    return path if path.is_file() else None


def _from_url(url: str) -> Path:
    from open_clip import pretrained

    # open_clip compares a file that is there with the digest in its name before it asks the network.
    if not _cached_from_url(url):
        _knock(url)
    return Path(pretrained.download_pretrained({"url": url}))


def _knock(url: str) -> None:
    """Ask once whether the host answers: the hub's client retries for a minute, line by line."""
    with suppress(urllib.error.HTTPError):  # an error page is an answer too
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE).close()


def _reason(error: BaseException) -> str:
    """Return the first line of the error at the bottom of the chain."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _whereabouts(published: dict[str, Any]) -> str:
    repository, _, file = published["hub"].rpartition("/")
    hub = f"{file or _HUB_FILES[0]} of the Hugging Face repository {repository}" if repository else ""
    return " or ".join(filter(None, [hub, published["url"]]))
