"""The full Kaggle set "Deepfake and Real Images" on one GPU or a TPU slice. Not yet run.

    python -m mnv4_jax.main --config=configs/kaggle.py --workdir=runs/kaggle \
        --config.data.dir=path/to/Dataset

Its Test split is damaged on purpose (blur, noise, JPEG), so this experiment trains with damage too.
Expected result: not yet run.
"""

from ml_collections import ConfigDict

from configs import small_long


def get_config() -> ConfigDict:
    config = small_long.get_config()
    config.train.epochs = 12.0  # of 140,002 pictures
    config.train.batch_size = 512
    config.train.learning_rate = 4e-3
    config.data.image_size = 224  # crops of 256
    config.data.workers = 12  # threads alone are too slow for an H100: docs/PERFORMANCE.md
    config.data.jpeg_prob = 0.5
    config.data.downscale_prob = 0.3
    config.augment.blur = 0.7
    config.augment.noise = 0.02
    config.augment.erase = 0.3
    return config
