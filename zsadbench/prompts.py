"""Where methods written against 0.1 find the prompts; the place is ``zsadbench.clip``."""

from .clip import anchor, encode, ensemble, read_prompts

__all__ = ["anchor", "encode", "ensemble", "read_prompts"]
