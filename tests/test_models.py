"""Promises of ``dino-ray models`` and docs/models.md: computed, readable at any width, and what is driven here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dino_ray import models
from dino_ray.cli import main
from dino_ray.diffusion import families, model_files, presence, published
from dino_ray.diffusion.catalogue import ALIASES, KNOWN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def test_every_alias_has_its_configuration_files() -> None:
    assert set(published.names()) == set(ALIASES)


def test_the_page_has_the_table_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert models.renewed(page) == page, "run scripts/make_models_page.py"


def test_models_whose_family_is_not_driven_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sdxl" in {row.alias for row in models.rows()}
    flux = [family for family in families.FAMILIES if family.name == "flux"]
    monkeypatch.setattr(families, "FAMILIES", tuple(flux))
    listed = {row.alias for row in models.rows()}
    assert {"bundled", "none", "flux-dev"} <= listed
    assert "sdxl" not in listed


def test_rows_say_what_the_models_own_files_say() -> None:
    rows = {row.alias: row for row in models.rows()}
    dev, schnell, sdxl = rows["flux-dev"], rows["flux-schnell"], rows["sdxl"]
    assert (dev.tile, dev.cfg, schnell.cfg, schnell.steps) == (1024, 3.5, None, 2)
    assert dev.accept == "https://huggingface.co/black-forest-labs/FLUX.1-dev"
    assert sdxl.accept is None
    assert dev.parameters == 11_901_408_320
    assert dev.download_gb == pytest.approx(33.7, abs=0.1)
    assert dev.memory_gb["bf16"] > 23.8 + 0.2
    memory = [dev.memory_gb[name] for name in ("fp32", "bf16", "fp8", "int8", "nf4", "group", "sequential")]
    assert memory == sorted(memory, reverse=True)


@pytest.mark.parametrize("width", [40, 80, 150])
def test_a_terminal_of_any_width_shows_all_models_and_no_line_is_wider(width: int) -> None:
    result = CliRunner().invoke(main, ["models"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    assert all(len(line) <= width for line in result.stdout.splitlines())
    for row in models.rows():
        assert row.alias in result.stdout
    assert "FLUX.1 [dev] Non-Commercial" in " ".join(result.stdout.split())


def test_json_has_all_rows() -> None:
    said = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert [row["alias"] for row in said] == [row.alias for row in models.rows()]
    assert said[0]["here"] is True


def test_a_model_is_here_once_all_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = ALIASES["sd15"]
    snapshot = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    folder = published.folder("sd15")
    assert folder is not None
    assert not model_files.is_present(repo)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text((folder / "model_index.json").read_text())
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, name in files.items():
        assert not model_files.is_present(repo)
        assert presence.absent("sd15") is not None
        (snapshot / part).mkdir()
        (snapshot / part / f"{name}.safetensors").touch()
        (snapshot / part / "config.json").touch()
    assert not model_files.is_present(repo)
    (snapshot / "tokenizer").mkdir()
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        (snapshot / "tokenizer" / name).touch()
    assert model_files.is_present(repo)
    assert presence.absent("sd15") is None
    assert [row.here for row in models.rows() if row.alias == "sd15"] == [True]


def test_gated_models_say_where_to_accept_the_licence() -> None:
    for known in KNOWN:
        assert known.licence
        assert not known.gated or known.page == f"https://huggingface.co/{known.repo}"
