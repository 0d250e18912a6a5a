"""LAPACK routines that run beside each other: called without Python's lock, so that every core can take a layer.

`scipy.linalg.lapack` holds the lock while a routine runs. scipy gives the same library to Cython as pointers to
functions (`scipy.linalg.cython_lapack`), and ctypes lets the lock go while it calls one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


def call(name: str, *arguments: bytes | int | np.ndarray) -> int:
    """Call a routine in double precision, and return its `info`: 0 where all went well.

    Args:
        name: such as "dsytrd".
        arguments: all but `info`, in LAPACK's order: letters, sizes, and arrays as they lie in memory (by columns).

    Source: https://docs.scipy.org/doc/scipy/reference/linalg.cython_lapack.html
    """
    info = ctypes.c_int(0)
    _routine(name)(*(_address(argument) for argument in arguments), ctypes.byref(info))
    return info.value


def _address(argument: bytes | int | np.ndarray) -> Any:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))


@cache
def _routine(name: str) -> Callable[..., None]:
    """Return a routine from the capsule in which Cython modules offer their functions to each other."""
    from scipy.linalg import cython_lapack

    capsule = ctypes.py_object(cython_lapack.__pyx_capi__[name])
    of_name, of_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    of_name.restype, of_pointer.restype = ctypes.c_char_p, ctypes.c_void_p
    return ctypes.CFUNCTYPE(None)(of_pointer(capsule, ctypes.c_char_p(of_name(capsule))))
