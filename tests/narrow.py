"""Rows of every kind of network with attention, narrow and shallow: they compile in seconds.

For what depends on a row's kind and not on its size. `tests/narrow_timm.py` is timm's side.
"""

import dataclasses

from mnv4_jax.models import mobilenetv4, vit

WIDTH, DEPTH, HEADS = 48, 2, 3
# A transformer of each kind, and the row that it is like.
TRANSFORMERS = {
    "vit_narrow": "vit_tiny_patch16_224",
    "vit_narrow_clip": "vit_large_patch14_clip_224",
    "vit_narrow_dinov2": "vit_small_patch14_dinov2",
    "vit_narrow_registers": "vit_small_patch14_reg4_dinov2",
}
for _name, _like in TRANSFORMERS.items():
    vit.VARIANTS[_name] = dataclasses.replace(
        vit.VARIANTS[_like], width=WIDTH, depth=DEPTH, heads=HEADS
    )

HYBRID = "narrow_hybrid"
STEM, FEATURES = 8, 64
STAGES = (  # attention with fewer keys than queries, and with as many; a grid of 8 px
    "er_r1_k3_s2_e4_c16",
    "uir_r1_a3_k3_s2_e2_c24 mqa_r1_k3_h2_s1_v2_d8_c24 mqa_r1_k3_h2_s1_v1_d8_c24",
    "cn_r1_k1_s1_c48",
)
mobilenetv4.VARIANTS[HYBRID] = mobilenetv4.Variant(
    STEM, STAGES, features=FEATURES, layer_scale=True
)
