"""`small.py` without the Gabor bank, to see the effect of the front end.

    python -m mnv4_jax.main --config=configs/small_plain.py --workdir=runs/small_plain

Time and result: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config()
    config.gabor.mode = "none"
    return config
