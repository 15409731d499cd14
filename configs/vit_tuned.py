"""The recipe of large pretrained detectors: tunes a small part of a vision transformer.

Only the scales and biases of its norms, and the head, are trained (after GenD, and
LN-tuning, Basu et al., AAAI 2024). Weights come from timm:

    python -m mnv4_jax.convert --from=timm --out=runs/clip \
        --weights=hf:timm/vit_large_patch14_clip_224.openai
    python -m mnv4_jax.main --config=configs/vit_tuned.py --workdir=runs/vit_tuned \
        --config.data.dir=$MNV4_DATA/rvf10k --config.model.init_from=runs/clip

It has 303 million parameters, and was not run to its end on a CPU.
"""

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.model.name = "vit_large_patch14_clip_224"
    config.model.drop_rate = 0.0
    config.model.zero_init_head = False
    config.gabor.mode = "none"
    config.data.image_size = 224
    config.train.trainable = ("norm", "norm_pre", "head")
    config.train.learning_rate = 3e-4
    config.train.weight_decay = 0.0
    return config
