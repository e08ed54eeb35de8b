"""Loops over a few hundred numbers, compiled for the CPU: one call in place of dozens of small tensor operations."""

from collections.abc import Callable
from functools import partial

from numba import njit
from numba.extending import register_jitable


def compiled(signature: str, reassociate: bool = False) -> Callable[[Callable], Callable]:
    """Compile a function of NumPy arrays for this signature, as its module is imported and so before any clock starts.

    The code is kept between processes where there is a folder to keep it in. A compiled function must not call one of
    another file, whose changes that cache would not notice.

    Args:
        reassociate: allow sums in another order than written, by vector instructions.
    """

    def decorate(function: Callable) -> Callable:
        compile_for = partial(
            njit, signature, error_model="numpy", fastmath={"reassoc", "contract"} if reassociate else False
        )
        try:
            return compile_for(cache=True)(function)
        except (OSError, RuntimeError):  # no folder that can be written
            return compile_for()(function)

    return decorate


def inlined(function: Callable) -> Callable:
    """Let compiled functions of the same file call this one, at no cost."""
    return register_jitable(inline="always")(function)
