"""Published weights from the cache and the network, without either."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from open_clip import pretrained

from zsadbench.clip import downloads
from zsadbench.clip.downloads import entry, fetch, tags
from zsadbench.clip.weights import find_weights
from zsadbench.errors import WeightsError
from zsadbench.inputs import Backbone


def no_network(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError(OSError("no route to host\nand more"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_a_network_one_line_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> str:
        raise AssertionError("asked for a download though the host does not answer")

    monkeypatch.setattr(pretrained, "download_pretrained", never)
    with pytest.raises(WeightsError) as caught:
        find_weights(Backbone("ViT-L-14-336", "openai"))
    message = str(caught.value)
    assert "\n" not in message and "could not be downloaded (" in message and "no route to host" in message
    assert "open_clip_model.safetensors of the Hugging Face repository" in message
    assert "vit_large_patch14_clip_336.openai" in message and "--weights FILE" in message


def test_a_failed_download_gives_its_first_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> str:
        try:
            raise ConnectionResetError("reset by peer")
        except ConnectionResetError as error:
            raise FileNotFoundError("Failed.\nLast error:") from error

    monkeypatch.setattr(downloads, "_knock", lambda url: None)
    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    with pytest.raises(WeightsError, match=r"could not be downloaded \(reset by peer\); fetch"):
        fetch("ViT-L-14", "openai")


def test_a_file_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repository: str, file: str) -> str | None:
        return f"/cache/{repository}/{file}" if file.endswith(".bin") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    path = fetch("ViT-B-16-plus-240", "laion400m_e31")
    assert path.name == "open_clip_pytorch_model.bin" and "laion400m_e31" in str(path)


def test_a_host_that_answers_with_an_error_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.HTTPError("https://x.org", 403, "Forbidden", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(pretrained, "download_pretrained", lambda wanted: f"/cache/{wanted['hf_hub']}file")
    assert str(fetch("ViT-L-14", "openai")).endswith("openai/file")


def test_a_tag_gets_its_own_weights_not_those_of_a_shared_repository() -> None:
    e31, e32 = (entry("ViT-B-16-plus-240", tag) for tag in ("laion400m_e31", "laion400m_e32"))
    assert e31["hub"].rstrip("/").endswith("laion400m_e31")
    assert e32["hub"] == "" and "laion400m_e32" in e32["url"]
    assert [entry("ViT-B-16", tag)["hub"] != "" for tag in tags("ViT-B-16")] == [True] * len(tags("ViT-B-16"))
    with pytest.raises(WeightsError, match=r"fetch https://.*laion400m_e32-699c4b84\.pt elsewhere"):
        fetch("ViT-B-16-plus-240", "laion400m_e32")


def test_the_activation_belongs_to_the_tag() -> None:
    assert (
        entry("ViT-B-16", "openai")["quick_gelu"] and not entry("ViT-B-16", "laion2b_s34b_b88k")["quick_gelu"]
    )
