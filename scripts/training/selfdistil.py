"""Stage ``dino``: a small DINO, taught by its own average to know a patch again through blur and noise.

As in DINO (Caron et al. 2021, arXiv:2104.14294) a student matches, over learned prototypes, a teacher that is
its own moving average, across crops; as in iBOT (Zhou et al. 2022, arXiv:2111.07832) patch by patch as well,
some of them masked; the teacher's assignments are balanced by Sinkhorn-Knopp as in DINOv2 (Oquab et al. 2023,
arXiv:2304.07193).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from dino_ray.dino.loading import IMAGENET_MEAN, IMAGENET_STD, load
from training.loop import Moment, Stage, note, train
from training.pool import Pool
from training.swaps import Features, raw_pixels, swap_auc

PATCH = 14
SIDE = 8 * PATCH
"""px of a training crop, and the grid of the position embedding, so that every entry of it is trained."""
WIDE_SIDE = 14 * PATCH
WIDE_EVERY = 4
"""Each so many steps the crops are wider and fewer: at work the net sees up to 37 × 37 patches."""
BATCH, WIDE_BATCH = 24, 8
CROP_SCALE = (0.7, 2.0)
"""px of the picture per px of the crop."""
PROTOTYPES = 768
PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.04
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
TEACHER_DECAY = (0.98, 0.999)
"""From the first step to the last: quick to leave the random start, slow to settle."""
MASKED_SHARE = 0.25
GLOBAL_WEIGHT = 0.3

CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    "layerscale_value": 0.5,
    "use_mask_token": True,
}


class Head(nn.Module):
    """Tokens to logits over prototypes, both of unit length."""

    def __init__(self, dim: int, bottleneck: int = 64) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, bottleneck))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, bottleneck), dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.project(tokens).float(), dim=-1) @ F.normalize(self.prototypes, dim=1).T


class Branch(nn.Module):
    """A Dinov2Model and its heads; student and teacher are one each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dinov2Model(Dinov2Config(**CONFIG))
        nn.init.trunc_normal_(self.backbone.embeddings.position_embeddings, std=0.02)
        self.whole, self.patch = Head(CONFIG["hidden_size"]), Head(CONFIG["hidden_size"])

    def forward(self, pixels: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the whole (B, K) and of the patches (B, n, K)."""
        tokens = self.backbone(normalise(pixels), bool_masked_pos=masked).last_hidden_state
        return self.whole(tokens[:, 0]), self.patch(tokens[:, 1:])


def normalise(pixels: Tensor) -> Tensor:
    mean = pixels.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = pixels.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (pixels - mean) / std


def train_dino(stage: Stage, pool: Pool, out: Path, device: torch.device) -> None:
    """Train student and teacher on ``pool``; save the teacher's backbone, centred, in ``out``."""
    torch.manual_seed(stage.seed)
    student, teacher = Branch().to(device), Branch().to(device)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)

    def step_once(moment: Moment) -> dict[str, float]:
        wide = moment.step % WIDE_EVERY == WIDE_EVERY - 1
        side, batch = (WIDE_SIDE, WIDE_BATCH) if wide else (SIDE, BATCH)
        crops = two_crops(pool, moment.rng, batch, side).to(device)
        masked = torch.rand(len(crops), (side // PATCH) ** 2, device=device) < MASKED_SHARE
        masked[::2] = False
        optimizer.param_groups[0]["lr"] = moment.rate(PEAK_RATE)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                goal_whole, goal_patch = teacher(disturb(crops, mild=True))
            whole, patch = student(disturb(crops, mild=False), masked)
        # Crops come in pairs of one picture: the whole of each must tell the other's.
        swapped = balanced(goal_whole).reshape(batch, 2, -1).flip(1).reshape(2 * batch, -1)
        loss_whole = cross_entropy(whole, swapped)
        loss_patch = cross_entropy(patch.flatten(0, 1), balanced(goal_patch.flatten(0, 1)))
        loss = loss_patch + GLOBAL_WEIGHT * loss_whole
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        decay = TEACHER_DECAY[0] + (TEACHER_DECAY[1] - TEACHER_DECAY[0]) * moment.progress
        with torch.no_grad():
            for slow, quick in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(quick, 1 - decay)
        return {"patch": loss_patch.item(), "whole": loss_whole.item()}

    train(stage, {"student": student, "teacher": teacher, "optimizer": optimizer}, step_once)
    save_centred(teacher.backbone, pool, out)


def two_crops(pool: Pool, rng: np.random.Generator, batch: int, side: int) -> Tensor:
    """(2 · batch, 3, side, side) in [0, 1]: two neighbours from each of ``batch`` pictures."""
    size = pool.large.shape[1]
    crops = []
    for i in rng.integers(len(pool.large), size=batch):
        for _ in range(2):
            extent = min(int(side * np.exp(rng.uniform(*np.log(CROP_SCALE)))), size)
            y, x = rng.integers(size - extent + 1, size=2)
            crop = np.array(pool.large[i, y : y + extent, x : x + extent])
            image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
            crops.append(F.interpolate(image, (side, side), mode="bilinear", antialias=True))
    return torch.cat(crops)


def disturb(crops: Tensor, mild: bool) -> Tensor:
    """Blur, noise, light and tint, each image its own amounts; small ones where ``mild``."""
    n, _, h, w = crops.shape
    strength = 0.3 if mild else 1.0

    def amount(high: float, channels: int = 1) -> Tensor:
        return strength * high * torch.rand(n, channels, 1, 1, device=crops.device)

    small = F.interpolate(crops, scale_factor=1 / 2.5, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, (h, w), mode="bicubic")
    crops = torch.lerp(crops, blurred, amount(1.0))
    crops = (crops - 0.5) * (1 + amount(0.3) - amount(0.3)) + 0.5
    crops = crops + amount(0.12) - amount(0.12) + amount(0.05, 3) - amount(0.05, 3)
    return (crops + amount(0.06) * torch.randn_like(crops)).clamp(0, 1)


@torch.no_grad()
def balanced(logits: Tensor, rounds: int = 3) -> Tensor:
    """Sinkhorn-Knopp: soft assignments (n, K) that use all prototypes alike, so that nothing collapses."""
    q = torch.exp((logits - logits.max()) / TEACHER_TEMPERATURE)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-12)
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12)
    return q


def cross_entropy(logits: Tensor, goal: Tensor) -> Tensor:
    return -(goal * F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)).sum(-1).mean()


@torch.no_grad()
def save_centred(backbone: Dinov2Model, pool: Pool, out: Path) -> None:
    """Save ``backbone``, its mean patch token taken out of its last bias, so that cosines centre on zero."""
    crops = two_crops(pool, np.random.default_rng(0), 32, WIDE_SIDE).to(backbone.device)
    backbone.eval()
    mean = backbone(normalise(crops)).last_hidden_state[:, 1:].mean((0, 1))
    backbone.layernorm.bias -= mean
    backbone.save_pretrained(out)


def untrained(seed: int) -> Features:
    """The same network with random weights, which is no DINO."""
    torch.manual_seed(seed)
    backbone = Branch().backbone.eval().requires_grad_(False)

    def features(pixels: Tensor) -> Tensor:
        tokens = backbone(normalise(pixels)).last_hidden_state[:, 1:]
        tokens = tokens - tokens.mean((0, 1))  # as `save_centred` does once for all pictures
        return tokens.view(1, pixels.shape[2] // PATCH, pixels.shape[3] // PATCH, -1)

    return features


def judge_dino(stage: Stage, out: Path) -> None:
    """Log how well features find swapped patches, of the result, of random weights, and of plain pixels."""
    subjects = {
        "trained": load(str(out)),
        "random": untrained(stage.seed + 1),
        "pixels": raw_pixels(PATCH),
    }
    for kind in ("anywhere", "neighbours"):
        scores = {
            name: round(swap_auc(features, PATCH, stage.seed + 1, neighbours=kind == "neighbours"), 4)
            for name, features in subjects.items()
        }
        note(stage, {"swap_auc": kind, **scores})
