# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Values that are made of tensors, and kept for as long as those are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """
    A value that is asked for in every step of training, and made again only when what it is made of has changed.

    In a small network a prior costs more than a layer to make. Whether a tensor has changed is seen from its identity
    and from the count of the times that it was written to; reading its values would wait for its device. A copy of
    what remembers begins without a value.

    Example::

        >>> import torch
        >>> kept, total = torch.ones(3), Remembered()
        >>> total.of([kept], lambda: print("summed") or kept.sum().item())
        summed
        3.0
        >>> total.of([kept], lambda: print("summed") or kept.sum().item())
        3.0
        >>> _ = kept.zero_()
        >>> total.of([kept], lambda: print("summed") or kept.sum().item())
        summed
        0.0
    """

    __slots__ = ("_settings", "_tensors", "_value", "_versions")

    def __init__(self) -> None:
        self._tensors: Sequence[Tensor] | None = None
        self._versions: list[int] = []
        self._settings: Any = None
        self._value: Any = None

    def of(self, tensors: Sequence[Tensor], make: Callable[[], T], settings: Any = None) -> T:
        """
        The value.

        :param tensors: what it is made of.
        :param make: makes it.
        :param settings: what else it is made of, compared by value.
        """
        versions = [tensor._version for tensor in tensors]
        if (
            self._tensors is None
            or versions != self._versions
            or settings != self._settings
            or not all(map(is_, tensors, self._tensors))
        ):
            # What validation without a tape makes, training may have to differentiate.
            with torch.inference_mode(False):
                self._value = make()
            self._tensors, self._versions, self._settings = tensors, versions, settings
        value: T = self._value
        return value

    def __reduce__(self) -> tuple[type[Remembered[T]], tuple[()]]:
        return type(self), ()
