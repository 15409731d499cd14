"""Prints what timm says of every variant with the weights of `formula`, for mobilenetv4.json.

python -m tests.golden.make_mobilenetv4 > tests/golden/mobilenetv4.json
"""

import json

import timm
import torch

from mnv4_jax.models.backbones import normalisation
from tests.golden import formula


def main():
    pictures = torch.from_numpy(formula.pictures()) / 255
    golden = {"timm": timm.__version__, "torch": torch.__version__}
    for name in formula.PUBLISHED:
        mean, std = map(torch.tensor, normalisation(name))
        x = ((pictures - mean) / std).permute(0, 3, 1, 2)
        model = timm.create_model(name, num_classes=2).eval()
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if v.ndim}
        weights = {k: torch.from_numpy(v) for k, v in formula.tensors(shapes).items()}
        model.load_state_dict(weights, strict=True)
        with torch.no_grad():
            logits = model(x).tolist()
        parameters = sum(p.numel() for p in model.parameters())
        golden[name] = {"parameters": parameters, "logits": logits}
    print(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main()
