"""A recipe and an auxiliary dataset become a checkpoint with its provenance.

Enter: a method with a recipe, a dataset, the authors' own files. Leave: checkpoints. Not known here: any
particular method, evidence, records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .authors import import_checkpoint
    from .data import Example, TrainingSet
    from .feeder import Feeder
    from .inert import MODULE, TENSOR
    from .losses import dice, focal, segmentation, total, two_way
    from .run import TrainRequest, execute, make_stages, resolve_training, train
    from .stages import Features, Stage, Truth, leaves
    from .variations import Augmented, Mosaic

__all__ = [
    "MODULE",
    "TENSOR",
    "Augmented",
    "Example",
    "Features",
    "Feeder",
    "Mosaic",
    "Stage",
    "TrainRequest",
    "TrainingSet",
    "Truth",
    "dice",
    "execute",
    "focal",
    "import_checkpoint",
    "leaves",
    "make_stages",
    "resolve_training",
    "segmentation",
    "total",
    "train",
    "two_way",
]
room(__name__)
