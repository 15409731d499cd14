"""`small.py` for a GPU, as long as it helps: five times the epochs, and more regularisation.

    python -m mnv4_jax.main --config=configs/small_long.py --workdir=runs/rvf10k_long \
        --config.data.dir=$MNV4_DATA/rvf10k

6.4 minutes on an H100 that five other runs shared; rvf10k Test AUC 0.925, with
`gabor.response=real` (docs/RESULTS.md).
"""

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.train.epochs = 110.0
    config.train.batch_size = 128
    config.train.weight_decay = 0.1
    config.model.drop_path_rate = 0.1
    config.augment.erase = 0.5
    config.checkpoint.every_steps = 500
    return config
