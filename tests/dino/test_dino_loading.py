from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_ray.dino.loading import IMAGENET_MEAN, IMAGENET_STD, describe, load, unit_rms
from dino_ray.errors import UsageError

DIM = 24
SMALL: dict[str, Any] = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}


def dinov2() -> Any:
    from transformers import Dinov2Config
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

    return Dinov2Model(Dinov2Config(**SMALL, image_size=70, patch_size=14))


def with_registers() -> Any:
    from transformers import Dinov2WithRegistersConfig
    from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
        Dinov2WithRegistersModel,
    )

    config = Dinov2WithRegistersConfig(**SMALL, image_size=70, patch_size=14, num_register_tokens=3)
    return Dinov2WithRegistersModel(config)


def dinov3() -> Any:
    from transformers import DINOv3ViTConfig
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

    return DINOv3ViTModel(
        DINOv3ViTConfig(**SMALL, intermediate_size=48, image_size=64, patch_size=16, num_register_tokens=4)
    )


FAMILIES = {
    "dinov2": (dinov2, 14, 1),
    "dinov2_with_registers": (with_registers, 14, 4),
    "dinov3_vit": (dinov3, 16, 5),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = {}
    for model_type, (make, _, _) in FAMILIES.items():
        torch.manual_seed(0)
        saved[model_type] = tmp_path_factory.mktemp(model_type)
        make().save_pretrained(saved[model_type])
    return saved


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_described_without_loading_it(folders: dict[str, Path], model_type: str) -> None:
    _, patch, prefix = FAMILIES[model_type]
    facts = describe(str(folders[model_type]))
    assert (facts.model_type, facts.dim, facts.patch, facts.prefix_tokens) == (model_type, DIM, patch, prefix)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tokens_are_the_models_own_patch_tokens_in_reading_order(
    folders: dict[str, Path], model_type: str
) -> None:
    _, patch, prefix = FAMILIES[model_type]
    dino = load(str(folders[model_type]))
    rows, cols = 3, 5
    pixels = torch.rand(2, 3, rows * patch, cols * patch, generator=torch.Generator().manual_seed(1))
    tokens = dino(pixels)
    normal = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    by_hand = dino.model(normal).last_hidden_state
    assert by_hand.shape[1] == prefix + rows * cols
    for row, col in ((0, 0), (1, 2), (2, 4)):
        expected = by_hand[:, prefix + row * cols + col]
        torch.testing.assert_close(tokens[:, row, col], unit_rms(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(2, rows, cols), atol=1e-3, rtol=0)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_size_between_patches_is_resized_and_not_cropped(folders: dict[str, Path], model_type: str) -> None:
    _, patch, _ = FAMILIES[model_type]
    dino = load(str(folders[model_type]))
    pixels = torch.full((1, 3, 2 * patch, 3 * patch + patch // 2 - 1), 0.5)
    flat = dino(pixels)
    assert flat.shape == (1, 2, 3, DIM)
    marked = pixels.clone()
    marked[..., -4:] = 1.0  # a crop to three patches would not see these columns
    assert (dino(marked) - flat).abs().max() > 1e-3


def test_weights_are_frozen_while_gradients_reach_the_pixels(folders: dict[str, Path]) -> None:
    dino = load(str(folders["dinov2"]))
    pixels = torch.rand(1, 3, 28, 28, requires_grad=True)
    dino(pixels)[..., 0].sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in dino.model.parameters())
    assert not dino.model.training


def test_half_precision_models_still_answer_in_float32(folders: dict[str, Path]) -> None:
    pixels = torch.rand(1, 3, 42, 42, generator=torch.Generator().manual_seed(2))
    exact, half = (load(str(folders["dinov2"]), dtype=dtype)(pixels) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert (exact - half).abs().mean() < 0.05


def test_describing_imports_no_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys\nfrom dino_ray.dino.loading import describe\n"
        f"describe({str(folders['dinov2'])!r})\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestErrors:
    def message(self, name: str, *, weights: bool = False) -> str:
        with pytest.raises(UsageError) as caught:
            load(name) if weights else describe(name)
        text = str(caught.value)
        assert name in text
        assert "\n" not in text
        return text

    @pytest.mark.parametrize(
        "name", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c", "no-slash"]
    )
    def test_a_missing_folder(self, name: str) -> None:
        assert "no such folder" in self.message(name)

    def test_a_file_in_place_of_a_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"")
        assert "is a file" in self.message(str(path))

    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        assert "no config.json" in self.message(str(tmp_path))

    def test_a_config_that_is_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        assert "not JSON" in self.message(str(tmp_path))

    @pytest.mark.parametrize(
        ("config", "named"), [({"model_type": "vit"}, "'vit'"), ({}, "None"), ([], "None")]
    )
    def test_another_kind_of_model_is_named(self, tmp_path: Path, config: object, named: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert f"model_type {named}" in self.message(str(tmp_path))

    def test_a_dino_config_without_its_sizes(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 24}))
        assert "patch_size=None" in self.message(str(tmp_path))

    def test_weights_in_another_format_are_not_read(self, folders: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
        (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
        assert "no .safetensors" in self.message(str(tmp_path), weights=True)

    def test_a_truncated_weight_file(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((folders["dinov2"] / name).read_bytes()[:1000])
        (tmp_path / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
        assert "cannot be loaded" in self.message(str(tmp_path), weights=True)

    @pytest.mark.parametrize("change", ["missing", "shape"])
    def test_weights_that_do_not_fit_are_never_made_up(
        self, folders: dict[str, Path], tmp_path: Path, change: str
    ) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folders["dinov2"] / "model.safetensors")
        name = "encoder.layer.1.mlp.fc1.weight"
        if change == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][:-1].clone()
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_bytes((folders["dinov2"] / "config.json").read_bytes())
        assert name in self.message(str(tmp_path), weights=True)

    def test_a_hub_id_while_offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        assert "can't be reached" in self.message("nobody/dinov2-nothing")
        assert "facebook/dinov2-small" in self.message("dinov2-small")

    @pytest.mark.parametrize(
        ("kind", "says"),
        [
            ("GatedRepoError", "gated"),
            ("RepositoryNotFoundError", "no such model on the Hugging Face hub"),
            ("LocalEntryNotFoundError", "can't be reached"),
        ],
    )
    def test_what_the_hub_refuses(self, monkeypatch: pytest.MonkeyPatch, kind: str, says: str) -> None:
        import huggingface_hub

        error = getattr(huggingface_hub.errors, kind)

        def refuse(*_: object, **__: object) -> str:
            raise error.__new__(error)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        assert says in self.message("somebody/something")
