"""`small.py` trained on attacked pictures, for use against an adversary.

    python -m mnv4_jax.main --config=configs/small_robust.py --workdir=runs/robust \
        --config.data.dir=$MNV4_DATA/rvf10k
    python -m mnv4_jax.evaluate --checkpoint=runs/robust --data=$MNV4_DATA/rvf10k \
        --out=runs/robust/report --attack=1,2,4

Result and limits: docs/ROBUSTNESS.md.
"""

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.data.image_size = 128
    config.train.adversary.method = "trades"
    config.train.adversary.budget = 1.0
    config.train.adversary.steps = 3
    return config
