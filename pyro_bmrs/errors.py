# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The one exception for mistakes that a user can mend, the one warning, and which site an error is about."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager


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


def name_of_unknown(name: str, known: Collection[str], what: str) -> ReductionError:
    """The error for a site that is not there, with the nearest names that are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ReductionError(f"{what} has no latent site {name!r}; its latent sites are {sorted(known)}{hint}")


@contextmanager
def naming(site: str) -> Iterator[None]:
    """Puts the site's name before what a rule, which knows only distributions, says is wrong."""
    try:
        yield
    except ReductionError as error:
        raise ReductionError(f"site {site!r}: {error}") from error
