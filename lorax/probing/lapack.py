"""LAPACK routines called without Python's global lock (GIL), so that every core can work on a layer.

`scipy.linalg.lapack` holds the lock while a routine runs. scipy offers the same library to Cython as pointers to
functions (`scipy.linalg.cython_lapack`), and ctypes releases the lock while it calls one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


def call(name: str, *arguments: bytes | int | np.ndarray) -> int:
    """Call a routine in double precision and return its `info`: 0 for success.

    Args:
        name: such as "dsytrd".
        arguments: all but `info`, in LAPACK's order: letters, sizes, and arrays, which LAPACK reads by columns.

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
    """Return a routine from the PyCapsule through which Cython modules share functions."""
    from scipy.linalg import cython_lapack

    capsule = ctypes.py_object(cython_lapack.__pyx_capi__[name])
    of_name, of_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    of_name.restype, of_pointer.restype = ctypes.c_char_p, ctypes.c_void_p
    return ctypes.CFUNCTYPE(None)(of_pointer(capsule, ctypes.c_char_p(of_name(capsule))))
