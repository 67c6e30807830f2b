# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The one exception for mistakes that a user can mend, and the one warning for estimates not to be trusted."""


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
