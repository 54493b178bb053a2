"""timm and torchvision: the smallest classifier of every module of theirs, by the names that users write."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.zoo.entry import Entry, Subject
from gradfeat.backbones import resolve
from gradfeat.optional import require

SIDES = (64, 96, 112, 128, 160, 192)  # pixels; the first that a network takes, where it takes other sizes than its own

_NARROW = "depth=3&embed_dim=96&num_heads=3"

TIMM = {
    "beit": f"beit_base_patch16_224?{_NARROW}",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224?depth=3",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": f"deepseek_vit_412m?{_NARROW}",
    "deit": "deit_tiny_patch16_224?depth=3",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "efficientnet_lite0",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224?depth=3",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": f"gemma4_vit_167m?{_NARROW}",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": f"naflexvit_base_patch16_gap?{_NARROW}",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": f"qwen3_vit_88m?{_NARROW}",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_ns_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224?depth=3",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224?depth=3",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": f"samvit_base_patch16_224?{_NARROW}",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}

TORCHVISION = {
    "alexnet": "alexnet",
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "maxvit": "maxvit_t",
    "mnasnet": "mnasnet0_5",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_small",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "shufflenetv2": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "swin_transformer": "swin_t",
    "vgg": "vgg11_bn",
    "vision_transformer": "vit_b_16",
}


def entries() -> list[Entry]:
    """Return timm's and torchvision's families."""
    families = [Entry("timm", family, name, _builder(f"timm/{name}")) for family, name in TIMM.items()]
    families += [
        Entry("torchvision", family, name, _builder(f"torchvision/{name}")) for family, name in TORCHVISION.items()
    ]
    return families


def _builder(name: str) -> Callable[[], Subject]:
    def build() -> Subject:
        require("timm", extra="vision")
        backbone = resolve(name, weights="random", random_state=0)
        config = getattr(backbone.network, "pretrained_cfg", None) or {}
        native = tuple(config.get("input_size", (3, 224, 224)))
        sizes = (
            [] if config.get("fixed_input_size") else [(native[0], side, side) for side in SIDES if side < native[1]]
        )
        for size in [*sizes, native]:
            x = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad():
                    backbone.network(x[:2])
            except (RuntimeError, AssertionError, ValueError):
                continue
            break
        return Subject(backbone.network, x, backbone.features)

    return build
