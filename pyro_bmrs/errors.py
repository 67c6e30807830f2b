# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The one exception for mistakes that a user can mend, the one warning, which site an error is about, and numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


class ReductionError(ValueError):
    """
    A reduction that cannot be computed as asked, for a reason that the caller can mend.

    The message names the site (where there is one) and says what to change.

    Example::

        >>> from pyro_bmrs import ReductionError
        >>> issubclass(ReductionError, ValueError)
        True
    """


class ReductionWarning(UserWarning):
    """
    A reduction that was computed but should not be relied upon, such as an importance estimate with Pareto k > 0.7.

    Example::

        >>> from pyro_bmrs import ReductionWarning
        >>> issubclass(ReductionWarning, UserWarning)
        True
    """


def name_of_unknown(name: str, known: Collection[str], what: str, noun: str = "latent site") -> ReductionError:
    """The error for a site, or what else has names, that is not there, with the nearest names that are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ReductionError(f"{what} has no {noun} {name!r}; its {noun}s are {sorted(known)}{hint}")


def check_number(number: Any, what: str, *, low: float = -math.inf, above: float = -math.inf) -> None:
    """
    Sees that what a user gives for a number is a finite one.

    :param number: what was given; a tensor of one element will do.
    :param what: what it is, for the message.
    :param low: the least that it may be.
    :param above: what it has to be larger than.
    :raises ReductionError: if it is not.

    Example::

        >>> from pyro_bmrs.errors import check_number
        >>> check_number(0.5, "the scale", above=0)
        >>> check_number(float("nan"), "the scale", above=0)
        Traceback (most recent call last):
        pyro_bmrs.errors.ReductionError: the scale is a finite number above 0, not nan
    """
    try:
        is_good = math.isfinite(number) and number >= low and number > above
    except (TypeError, ValueError, RuntimeError):  # of what has no value as a number
        is_good = False
    if not is_good:
        bound = f" above {above:g}" if above > -math.inf else f" of at least {low:g}" if low > -math.inf else ""
        raise ReductionError(f"{what} is a finite number{bound}, not {number!r}")


@contextmanager
def naming(site: str) -> Iterator[None]:
    """Puts the site's name before what a rule, which knows only distributions, says is wrong."""
    try:
        yield
    except ReductionError as error:
        raise ReductionError(f"site {site!r}: {error}") from error
