"""Freed memory is returned to the system.

glibc keeps freed memory between blocks that are still in use, each thread in an arena of its own: solving the weights of
ViT-S took 1.19 GB where 0.96 GB suffice with this after every layer, at no measurable time.
"""

import ctypes
import gc
import sys
from functools import cache


def give_back(*, cycles: bool = True) -> None:
    """Return free memory to the system, where the C library can.

    Args:
        cycles: first collect reference cycles. Graphs are full of them: a node that was taken out of a graph holds its weights
            until then.
    """
    if cycles:
        gc.collect()
    library = _c_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
