"""Renew the table of docs/models.md: python scripts/make_models_page.py. To be run when a model or a family changes."""

from __future__ import annotations

from pathlib import Path

from dino_ray.models import renewed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"

if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
