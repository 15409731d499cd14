"""The rows of `tests/narrow.py` in timm, whose own networks take other sizes by keyword."""

import timm
from timm.models import register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from tests import narrow


def _register_transformer(name, like):
    def make(pretrained=False, **kwargs):
        sizes = {"embed_dim": narrow.WIDTH, "depth": narrow.DEPTH, "num_heads": narrow.HEADS}
        return timm.create_model(like, **sizes, **kwargs)

    make.__name__ = name
    register_model(make)


for _name, _like in narrow.TRANSFORMERS.items():
    _register_transformer(_name, _like)


@register_model
def narrow_hybrid(num_classes, in_chans=3, **_):
    """As timm's `_gen_mobilenet_v4` builds its hybrid ones."""
    return MobileNetV3(
        decode_arch_def([stage.split() for stage in narrow.STAGES]),
        stem_size=narrow.STEM,
        num_features=narrow.FEATURES,
        head_bias=False,
        head_norm=True,
        act_layer=nn.ReLU,
        layer_scale_init_value=1e-5,
        num_classes=num_classes,
        in_chans=in_chans,
    )
