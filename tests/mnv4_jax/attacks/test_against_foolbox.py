"""The same detector in PyTorch, attacked by a library that knows nothing of this project."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import demo
from input_pipeline.decode import decode
from mnv4_jax.detector.detector import Detector
from mnv4_jax.report.attacked import Attacked, attacks

torch = pytest.importorskip("torch", reason="needs the extra `attacks`")
foolbox = pytest.importorskip("foolbox", reason="needs the extra `attacks`")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

N, STEPS = 64, 10


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def pictures():
    """[64, 128, 128, 3] uint8 drawn portraits."""
    drawn = (decode(demo.draw_jpeg(seed, seed % 2)[0]) for seed in range(N))
    return np.stack([cv2.resize(x, (128, 128), interpolation=cv2.INTER_AREA) for x in drawn])


@pytest.fixture(scope="module")
def in_torch(detector, tmp_path_factory):
    """[B, 3, H, W] in [0, 1] -> calibrated logits."""
    from mnv4_jax.export.torch_module import load

    file = tmp_path_factory.mktemp("torch") / "shipped.safetensors"
    command = [sys.executable, "-m", "mnv4_jax.convert", "--to=torch", f"--out={file}"]
    subprocess.run(command, check=True, timeout=120)
    loaded = load(file)

    class Calibrated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loaded = loaded

        def forward(self, x):
            return self.loaded.logits(x.permute(0, 2, 3, 1)) / self.loaded.temperature

    return Calibrated().eval()


@pytest.mark.parametrize(("name", "budget"), [("fgsm", 1), ("fgsm", 2), ("pgd", 1)])
def test_robust_accuracy_is_that_of_foolbox(detector, pictures, in_torch, name, budget):
    asked = Attacked(detector.model, pictures, np.zeros(N), temperature=detector.temperature)
    labels = np.argmax(asked.logits(pictures), axis=1).astype(np.int32)  # what it says unattacked
    asked = Attacked(detector.model, pictures, labels, temperature=detector.temperature)
    settings = {"steps": STEPS} if name == "pgd" else {}
    changed = asked.run(name, attacks(STEPS)[name], budget, **settings)
    ours = np.mean(np.argmax(asked.logits(changed), axis=1) == labels)

    theirs = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "pgd": foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS),
    }[name]
    model = foolbox.PyTorchModel(in_torch, bounds=(0, 1))
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    _, found, _ = theirs(model, x, torch.from_numpy(labels).long(), epsilons=budget / 255)
    found = torch.clamp(torch.round(found * 255), 0, 255) / 255  # as a file holds it
    with torch.no_grad():
        answers = in_torch(found).argmax(1).numpy()
    robust = np.mean(answers == labels)
    assert abs(ours - robust) <= 0.02
    if (name, budget) == ("fgsm", 1):
        assert 0 < robust < 1  # neither nothing nor everything is left to compare
