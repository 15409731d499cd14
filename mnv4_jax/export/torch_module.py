"""The same detector in PyTorch: uint8 pictures in, p_fake out. Needs torch and timm, never JAX.

from mnv4_jax.export.torch_module import load
detector = load("model.safetensors")
p_fake = detector(torch.from_numpy(pictures))  # [B, H, W, 3] uint8 -> [B]
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
# A learnable bank's parameters: stored for the way back to JAX; PyTorch uses only the taps.
_BANK_PARAMETERS = {f"gabor.{name}" for name in ("theta", "sigma", "lambd", "gamma", "psi")}


class Gabor(nn.Module):
    """Filters the luma of pictures in [0, 1]; `weight` [K, 1, k, k], "magnitude" 2K."""

    def __init__(self, weight: torch.Tensor, response: str):
        super().__init__()
        self.register_buffer("weight", weight)
        self.response = response

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, K, H, W]; borders are reflected."""
        luma = sum(images[:, c : c + 1] * w for c, w in enumerate(LUMA))
        pad = self.weight.shape[-1] // 2
        y = F.conv2d(F.pad(luma, (pad, pad, pad, pad), mode="reflect"), self.weight)
        if self.response == "magnitude":
            real, imaginary = y.chunk(2, dim=1)
            y = torch.sqrt(real**2 + imaginary**2 + 1e-12)
        return y


class Detector(nn.Module):
    """Normalises, filters and calls timm's network.

    Args:
      settings: from the file's header: "model", "normalisation", "gabor" and "calibration", as
        `mnv4_jax.convert` wrote them.
      taps: [K, 1, k, k] of the Gabor bank, or None without one.
    """

    def __init__(self, settings: Mapping[str, Any], taps: torch.Tensor | None = None):
        super().__init__()
        mode = settings["gabor"]["mode"]
        self.mode, self.gain = mode, 0.0 if mode == "none" else settings["gabor"]["gain"]
        self.temperature = (settings["calibration"] or {}).get("temperature", 1.0)
        self.gabor = None if mode == "none" else Gabor(taps, settings["gabor"]["response"])
        further = 0
        if mode == "concat":
            further = len(taps) // (2 if self.gabor.response == "magnitude" else 1)
        sizes = {}
        if settings["model"].startswith("vit_"):  # resamples positions for other picture sizes
            trained_on = settings["config"]["data"]["image_size"]
            sizes = {"img_size": trained_on, "dynamic_img_size": True}
        self.backbone = timm.create_model(
            settings["model"], num_classes=2, in_chans=3 + further, pretrained=False, **sizes
        )
        for name in ("mean", "std"):
            values = torch.tensor(settings["normalisation"][name]).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3] RGB, uint8 or float in [0, 1] -> [B] calibrated probability of a fake."""
        return torch.softmax(self.logits(pictures) / self.temperature, dim=1)[:, 0]

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3] RGB, uint8 or float in [0, 1] -> [B, 2]: fake, real; not calibrated."""
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(self.mean.dtype) / 255
        images = pictures.permute(0, 3, 1, 2)
        responses = None if self.gabor is None else self.gain * self.gabor(images)
        if self.mode == "enhance":
            images = images + responses.mean(dim=1, keepdim=True)
        x = (images - self.mean) / self.std
        if self.mode == "concat":
            x = torch.cat([x, responses], dim=1)
        return self.backbone(x)


def load(path: str | os.PathLike) -> Detector:
    """The detector in a file that `mnv4_jax.convert --to=torch` wrote, in evaluation mode."""
    with safe_open(path, framework="pt") as file:
        settings = {k: json.loads(v) for k, v in file.metadata().items() if k != "format"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    detector = Detector(settings, tensors.get("gabor.weight"))
    state = {
        name if name == "gabor.weight" else f"backbone.{name}": tensor
        for name, tensor in tensors.items()
        if name not in _BANK_PARAMETERS
    }
    detector.load_state_dict(state)  # strict
    return detector.eval()
