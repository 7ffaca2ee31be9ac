"""Promises of what a result's pixels depend on."""

from __future__ import annotations

import huggingface_hub
import pytest

from dino_ray.identity import of_weights


@pytest.mark.parametrize(
    ("alias", "repo"),
    [("flux-dev", "black-forest-labs/FLUX.1-dev"), ("dinov2-base", "facebook/dinov2-base")],
)
def test_an_alias_stands_for_the_commit_of_what_it_means(
    alias: str, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(asked: str, name: str, revision: str | None) -> str | None:
        return f"/cache/snapshots/c0ffee/{name}" if asked == repo else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert of_weights(alias) == "of commit c0ffee"
    assert of_weights("bundled") == "bundled"
