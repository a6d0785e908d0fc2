"""What others publish: weights that open_clip knows by tags, files of the Hugging Face Hub by address."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import UsageError, WeightsError, suggest
from ..files import sha256_of

_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_PATIENCE = 10  # seconds for a host to answer at all
_SCHEME = re.compile(r"hf:/{1,2}")  # pathlib makes one slash of two
_ADDRESS = re.compile(
    r"(?P<kind>(?:models|datasets|spaces)/)?(?P<repository>(?!(?:models|datasets|spaces)/)[^/@\s]+/[^/@\s]+)"
    r"(?:@(?P<revision>[^/\s]+))?/(?P<file>.+)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it, one below the other."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """Return the first line of the error at the bottom of the chain."""
    *_, error = _chain(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _whereabouts(published: dict[str, Any]) -> str:
    repository, _, file = published["hub"].rpartition("/")
    hub = f"{file or _HUB_FILES[0]} of the Hugging Face repository {repository}" if repository else ""
    return " or ".join(filter(None, [hub, published["url"]]))


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face Hub; ``kind`` is model, dataset or space."""

    kind: str
    repository: str
    revision: str
    file: str

    @classmethod
    def parse(cls, address: str) -> HubFile:
        """Return the file that an address names: ``hf://[datasets/]user/repo[@revision]/path/file``.

        Slashes in a revision are written ``%2F``, as ``huggingface_hub`` has it.

        Raises:
            UsageError: for an address of another form.
        """
        found = _ADDRESS.fullmatch(_SCHEME.sub("", address, count=1))
        if not found or not {"", ".", ".."}.isdisjoint(found["file"].split("/")):
            raise UsageError(
                f"{address}: no address of a file on the Hugging Face Hub; write hf://user/repo/file, or "
                "hf://user/repo@revision/folder/file (hf://datasets/user/... for a dataset's repository)"
            )
        kind = _KINDS[(found["kind"] or "models/")[:-1]]
        return cls(kind, found["repository"], unquote(found["revision"] or "main"), found["file"])

    @property
    def at(self) -> dict[str, Any]:
        """The words by which ``huggingface_hub`` knows it."""
        names = {"repo_id": self.repository, "filename": self.file}
        return names | {"revision": self.revision, "repo_type": self.kind}


def local_file(given: str | Path) -> Path:
    """Return the file that a path or an address ``hf://...`` names, downloading it on first use.

    A commit that is in the cache needs no network; neither does any other revision with ``HF_HUB_OFFLINE=1``
    or without a network.

    Raises:
        UsageError: for a malformed address.
        WeightsError: in one line, if it cannot be had, or is not what the Hub says it is.
    """
    if not is_address(given):
        return Path(given)
    wanted = HubFile.parse(str(given))
    address = f"hf://{_SCHEME.sub('', str(given), count=1)}"
    try:
        path = _cached_or_fetched(wanted)
    except Exception as error:  # of the client, the network or the disk
        raise WeightsError(f"{address}: {_refusal(error, wanted)}") from error
    return _verified(path, address)


def is_address(given: str | Path) -> bool:
    """Tell whether a text is an address of the Hugging Face Hub, whatever follows ``hf://``."""
    return bool(_SCHEME.match(str(given)))


def hub_address(path: str | Path) -> str:
    """Return the address, with the commit, of a file in the cache of the Hub; empty for any other file."""
    parts = Path(path).parts
    for place in (number for number, part in enumerate(parts) if part == "snapshots" and number):
        kind, *names = parts[place - 1].split("--")
        commit, *inside = parts[place + 1 :] or [""]
        if kind in _KINDS and len(names) == 2 and _COMMIT.fullmatch(commit) and inside:
            prefix = "" if kind == "models" else f"{kind}/"
            return f"hf://{prefix}{'/'.join(names)}@{commit}/{'/'.join(inside)}"
    return ""


def _cached_or_fetched(wanted: HubFile) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(**wanted.at)
    held = Path(cached) if isinstance(cached, str) else None
    if held and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(wanted.revision)):
        return held
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        _knock(constants.ENDPOINT)
    except OSError:
        if held:
            return held
        raise
    return Path(huggingface_hub.hf_hub_download(**wanted.at))


def _refusal(error: Exception, wanted: HubFile) -> str:
    """Return in words why a file of the Hub cannot be had, and what to do."""
    from huggingface_hub import errors

    sign_in = "sign in with hf auth login, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated; accept its terms on its page and {sign_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such {wanted.kind} repository, or it is private; correct the name, or {sign_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision '{wanted.revision}'; name a branch, a tag or a commit of it"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the repository holds no such file at revision '{wanted.revision}'; correct the path"
    if {401, 403} & {getattr(getattr(one, "response", None), "status_code", 0) for one in _chain(error)}:
        return f"the Hub refuses access ({_reason(error)}); {sign_in} to a token that may read it"
    return (
        f"is not in the cache of this machine and could not be fetched ({_reason(error)}); fetch it where "
        "there is a network and give that file in place of the address"
    )


def _verified(path: Path, address: str) -> Path:
    """Return a file of the cache if it is what its blob is called by: large ones by their SHA-256."""
    blob = path.readlink() if path.is_symlink() else path
    named = blob.name if blob.parent.name == "blobs" else ""
    if re.fullmatch(r"[0-9a-f]{64}", named) and sha256_of(path) != named:
        raise WeightsError(
            f"{address}: the file in the cache is not the one of the Hub (its SHA-256 is another); remove "
            f"{path.resolve()} and repeat"
        )
    return path
