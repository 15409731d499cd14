"""A small vision transformer from scratch, for comparison: `small.py` is better.

    python -m mnv4_jax.main --config=configs/vit_small.py --workdir=runs/vit_small \
        --config.data.dir=$MNV4_DATA/rvf10k

A transformer must learn from the pictures what is built into a convolution, and a face set has few
pictures. Results at an equal budget: docs/RESULTS.md, "A small vision transformer".
"""

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.model.name = "vit_tiny_patch16_224"
    config.data.image_size = 128
    config.train.batch_size = 32
    config.train.learning_rate = 5e-4
    config.train.warmup_epochs = 0.5
    return config
