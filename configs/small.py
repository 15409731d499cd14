"""MobileNetV4-Conv-Small behind a Gabor bank: the default experiment, on any data.

    python -m mnv4_jax.main --config=configs/small.py --workdir=runs/small
    python -m mnv4_jax.main --config=configs/small.py --workdir=runs/rvf10k \
        --config.data.dir=$MNV4_DATA/rvf10k

Time and result: see the table in README.md, printed by these commands.
"""

from ml_collections import ConfigDict

from mnv4_jax import defaults


def get_config() -> ConfigDict:
    """All fields with their defaults, from `mnv4_jax/defaults.py`."""
    return defaults.get_config()
