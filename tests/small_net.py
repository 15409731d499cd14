"""A config file of four blocks: `configs/small.py` with a network that compiles in seconds.

    python -m mnv4_jax.main --config=tests/small_net.py --workdir=…

For what does not depend on the network: processes, kills, resuming.
"""

from configs import small
from mnv4_jax.models.mobilenetv4 import VARIANTS, Variant

VARIANTS["small_net"] = Variant(
    stem=8,
    stages=("cn_r1_k3_s2_c8", "uir_r1_a3_k3_s2_e2_c16 uir_r1_a0_k3_s1_e2_c16"),
    features=32,
)


def get_config():
    config = small.get_config()
    config.model.name = "small_net"
    config.gabor.mode = "none"
    config.data.image_size = 32
    config.data.threads = 2
    config.data.log_digests = True
    config.train.batch_size = 8
    config.train.log_every_steps = 1
    return config
