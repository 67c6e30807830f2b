# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise that say which class to expect: of an example, or of each of its pixels or tokens."""

from __future__ import annotations

from typing import Any, cast

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.training.kl_weight import KLWeight
from pyro_bmrs.pruning.training.models import Likelihood


class Labels(dist.Categorical):
    """
    Labels, some of which are not known, and those of some classes weigh more than others.

    :param logits: of the classes, along the last dimension.
    :param ignore_index: the label of what is not known, whose log likelihood is 0.
    :param class_weights: what the log likelihood of a label of each class is multiplied by.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.training.classification import Labels
        >>> Labels(torch.zeros(2, 3), -100).log_prob(torch.tensor([1, -100]))
        tensor([-1.0986,  0.0000])
    """

    def __init__(self, logits: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.ignore_index, self.class_weights = ignore_index, class_weights

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new, parent = object.__new__(Labels) if _instance is None else _instance, cast(Any, super())
        new.ignore_index, new.class_weights = self.ignore_index, self.class_weights
        return parent.expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        is_known, parent = value != self.ignore_index, cast(Any, super())
        classes = torch.where(is_known, value, 0)
        log_prob: Tensor = parent.log_prob(classes)
        if self.class_weights is not None:
            log_prob = log_prob * self.class_weights[classes]
        return torch.where(is_known, log_prob, 0.0)


class Classification(Likelihood):
    """
    A network whose outputs are the logits of classes, as a Pyro model.

    The log likelihood of an example is the sum over its labels: one; one for each pixel, with logits of shape
    ``(batch, classes, *pixels)``; or one for each token, with logits of shape ``(batch, tokens, classes)``. Where the
    classes are is seen from the shape of the labels. With a guide and an ELBO the model is trained as any PyTorch
    module is.

    :param net: the network, with noise; see :class:`Likelihood` for what it may return.
    :param num_examples: how many examples there are in the training data: images or sequences, not pixels or tokens.
    :param kl_weight: see :class:`Likelihood`.
    :param ignore_index: the label of what has none, such as padding.
    :param class_weights: what the log likelihood of a label of each class is multiplied by, shape ``(classes,)``.
    :param class_dim: which dimension of the logits counts the classes, 1 or -1, where that cannot be seen.
    :param next_token: whether the logits at each token are those of the label at the next one, as a language model's
        are. It has to be said for a network that calls itself one.
    :raises ReductionError: also for class weights that are negative or not finite; when called, for labels that are no
        whole numbers or of a shape that is not that of the logits without the classes, for logits of one class, and
        where as many classes as labels leave two ways to read the logits.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO
        >>> from pyro_bmrs.pruning import attach_noise, parameter_groups
        >>> x, y = torch.randn(200, 3), torch.randint(2, (200,))
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
        >>> model = Classification(net, num_examples=200)
        >>> elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
        >>> optimizer = torch.optim.Adam(parameter_groups(elbo, lr=1e-3))
        >>> for _ in range(3):
        ...     loss = elbo(x, y)
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
    """

    class_weights: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        num_examples: int,
        *,
        kl_weight: KLWeight = 1.0,
        ignore_index: int = -100,
        class_weights: Tensor | None = None,
        class_dim: int | None = None,
        next_token: bool | None = None,
    ) -> None:
        super().__init__(net, num_examples, kl_weight=kl_weight)
        if class_dim not in (None, 1, -1):
            raise ReductionError(f"the classes are in dimension 1 or -1 of the logits, not {class_dim!r}")
        if class_weights is not None:
            class_weights = torch.as_tensor(class_weights, dtype=torch.get_default_dtype())
            if class_weights.dim() != 1 or not (class_weights.isfinite() & (class_weights >= 0)).all():
                raise ReductionError(
                    f"class_weights are finite and not negative, one for each class; not {class_weights.tolist()}"
                )
        if next_token is None and _is_language_model(net):
            raise ReductionError(
                f"{type(net).__name__} is a language model. Say next_token=True if labels are those of the tokens "
                "themselves, as they are in batches for it, so that each token's logits are of the next label; "
                "next_token=False if labels are shifted already"
            )
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_index, self.class_dim, self.next_token = ignore_index, class_dim, bool(next_token)

    def aligned(self, output: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The logits with the classes last, of those places alone of which there are labels, and the labels."""
        output, y = super().aligned(output, y)
        if y is not None and (y.is_floating_point() or y.is_complex()):
            raise ReductionError(
                f"labels are the numbers of classes, and these, of shape {tuple(y.shape)}, are {y.dtype}: give whole "
                "numbers (y.long()); for shares of classes derive a Likelihood with an observation of your own"
            )
        dim = self._find_class_dim(output, y)
        if output.dim() < 2 or output.shape[dim] < 2:
            raise ReductionError(
                f"a network for a Classification returns logits of two or more classes, and this one returns the shape "
                f"{tuple(output.shape)}; of one logit derive a Likelihood whose observation is a Bernoulli"
            )
        output = output.movedim(dim, -1) if dim == 1 and output.dim() > 2 else output
        if self.next_token and output.dim() > 2:
            output = output[:, :-1]
            y = None if y is None else y[:, 1:]
        return output, None if y is None else y.long()

    def _find_class_dim(self, output: Tensor, y: Tensor | None) -> int:
        """Where the classes are; once a batch has told, it is remembered for those that do not tell."""
        if output.dim() <= 2:
            return -1
        if y is not None:
            fitting = [dim for dim in (1, -1) if _without(output.shape, dim) == y.shape]
            if len(fitting) == 1 and self.class_dim is None:
                self.class_dim = fitting[0]
            if not fitting or (self.class_dim is not None and self.class_dim not in fitting):
                raise ReductionError(
                    f"the logits have the shape {tuple(output.shape)} and the labels {tuple(y.shape)}; there is one "
                    "label for each place, of logits (batch, classes, *pixels) or (batch, tokens, classes)"
                )
        if self.class_dim is None:
            raise ReductionError(
                f"logits of the shape {tuple(output.shape)} leave open where the classes are: say class_dim=1, as of "
                "pixels, or class_dim=-1, as of tokens"
            )
        return self.class_dim

    def observation(self, output: Tensor) -> Any:
        """A categorical distribution of each label."""
        weights = None if self.class_weights is None else self.class_weights.to(output)
        return Labels(output, self.ignore_index, weights)

    def log_likelihood(self, output: Tensor, y: Tensor) -> Tensor:
        """The same as by the distribution, in one operation, unless a derived class has another."""
        if type(self).observation is not Classification.observation or output.shape[:-1] != y.shape:
            return super().log_likelihood(output, y)
        weights = None if self.class_weights is None else self.class_weights.to(output)
        logits, labels = (output, y) if y.dim() == 1 else (output.flatten(0, -2), y.flatten())
        return -F.cross_entropy(logits, labels, weights, ignore_index=self.ignore_index, reduction="sum")


def _without(shape: torch.Size, dim: int) -> tuple[int, ...]:
    return tuple(shape[:-1]) if dim == -1 else (*shape[:dim], *shape[dim + 1 :])


def _is_language_model(net: nn.Module) -> bool:
    """Whether a network is one of transformers' for the next token, by the names of its classes."""
    names = [kind.__name__ for kind in type(net).__mro__]
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
