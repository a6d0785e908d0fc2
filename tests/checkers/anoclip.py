"""AnoCLIP against its authors' code, stage by stage; files with test-time adaptation belong to AnoCLIP+."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkers.anoclip_encoding import FEATURES, SPAN, check_encoding, check_maps, method_of
from tests.checkers.anoclip_plus import check_adapted
from tests.checkers.common import opened


def check(path: Path) -> None:
    """Compare one golden file, plain or tiled, without or with an adapter."""
    with opened(path, FEATURES) as golden:
        if golden.meta["adapter"]:
            check_adapted(golden)
            return
        with torch.inference_mode():
            evidence = check_encoding(golden)
            check_maps(golden, method_of(golden.meta).method, evidence, SPAN)
