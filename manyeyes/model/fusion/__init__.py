"""Fusion: what several experts see becomes the visual tokens of one image.

One file per published mechanism, all of them a :class:`Fusion`; ``build`` has the one ``match``.
"""

from manyeyes.model.fusion.base import Eyes, Fusion, is_trainable
from manyeyes.model.fusion.build import build_fusion, fusion_from_json

__all__ = ["Eyes", "Fusion", "build_fusion", "fusion_from_json", "is_trainable"]
