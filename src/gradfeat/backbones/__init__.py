"""Networks as users name them, with their weights, features and preprocessing."""

from __future__ import annotations

from gradfeat.backbones.backbone import Backbone, resolve
from gradfeat.backbones.fingerprint import difference, fingerprint, summary
from gradfeat.backbones.head import features_of, head_of

__all__ = ["Backbone", "difference", "features_of", "fingerprint", "head_of", "resolve", "summary"]
