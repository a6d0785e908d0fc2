"""Files become network input and masks; what is wrong with them is found before the encoder starts.

Enter: paths of images and masks, a method's ``Preprocess``. Leave: decoded, resized tensors in order, masks
at a size, problems. Not known here: descriptions of datasets, CLIP, methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .ahead import ahead, in_pieces
    from .batches import to_batch_images
    from .decoding import MAX_PIXELS, decode, default_workers, looks_like_image, picture_of, probe, read
    from .loader import Loaded, preprocess, stream, to_rgb
    from .mapfiles import check_maps, find_maps, read_map, read_scores
    from .masks import MaskRule, defects_at, mask_at, mask_files, read_mask, vanished
    from .saturation import read_saturations
    from .scan import scan
    from .tiff import half_tiff
    from .transfer import Lanes, lanes, proof, prove

__all__ = [
    "MAX_PIXELS",
    "Lanes",
    "Loaded",
    "MaskRule",
    "ahead",
    "check_maps",
    "decode",
    "default_workers",
    "defects_at",
    "find_maps",
    "half_tiff",
    "in_pieces",
    "lanes",
    "looks_like_image",
    "mask_at",
    "mask_files",
    "picture_of",
    "preprocess",
    "probe",
    "proof",
    "prove",
    "read",
    "read_map",
    "read_mask",
    "read_saturations",
    "read_scores",
    "scan",
    "stream",
    "to_batch_images",
    "to_rgb",
    "vanished",
]
room(__name__)
