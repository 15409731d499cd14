"""The shipped detector: all available families of fakes, with damage as by platforms, and fakes
made from photographs.

    python -m input_pipeline.prepare --faces --source=$MNV4_DATA/rvf10k \
        --out=$MNV4_DATA/rvf10k_faces
    python -m mnv4_jax.main --config=configs/shipped.py --workdir=runs/shipped
    python -m mnv4_jax.ship --checkpoint=runs/shipped

Time and result: docs/MODEL_CARD.md.
"""

import os

from ml_collections import ConfigDict

from configs import small

SETS = (
    "dfdc_faces",
    "rvf10k",
    "rvf10k_faces",  # the same pictures, framed like the sets below
    "stylegan2_faces",
    "studio_gan_faces",
    "diffusion_faces",
    "utkface",
)


def get_config() -> ConfigDict:
    config = small.get_config()
    root = os.environ.get("MNV4_DATA", "$MNV4_DATA")  # else main reports a missing folder
    config.data.dir = ",".join(f"{root}/{name}" for name in SETS)
    config.data.image_size = 128
    config.data.crop_pct = 0.8  # of 160 px: nothing is resampled
    # Framing, sharpness and brightness differ between the sets, so all of them are randomised
    # (python -m mnv4_jax.audit --config=configs/shipped.py).
    config.data.zoom = (0.6, 1.25)
    config.augment.brightness = 0.25
    config.augment.contrast = 0.25
    config.data.weights = (7.0, 2.0, 2.0, 1.0, 0.7, 1.2, 1.5)
    config.data.jpeg_prob = 0.4
    config.data.downscale_prob = 0.25
    config.data.downscale = (0.35, 0.95)
    config.data.blended = 0.15
    config.augment.blur = 0.5
    config.augment.noise = 0.015
    config.augment.erase = 0.3
    config.model.drop_path_rate = 0.1
    config.train.weight_decay = 0.1
    config.train.steps = 19000
    config.train.eval_every_steps = 1000
    config.checkpoint.every_steps = 250
    return config
