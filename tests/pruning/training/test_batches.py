# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.training.batches import pair_of, prediction, run_on_batch, targets_of


class Returns(nn.Module):
    """Returns what it is called with."""

    def forward(self, *args, **kwargs):
        return args or kwargs


class Needs(nn.Module):
    def forward(self, ids, labels):
        return ids, labels


def test_inputs_are_a_tensor_positional_or_keyword_arguments():
    one, two = torch.ones(2), torch.zeros(2)
    assert run_on_batch(Returns(), one) == (one,)
    assert run_on_batch(Returns(), [one, two]) == (one, two)
    assert run_on_batch(Returns(), {"a": one, "b": two}) == {"a": one, "b": two}


def test_labels_are_for_the_likelihood_unless_the_network_cannot_do_without():
    batch = {"ids": torch.ones(2), "labels": torch.zeros(2)}
    assert targets_of(batch, None) is batch["labels"] and targets_of(batch, batch["ids"]) is batch["ids"]
    assert targets_of(torch.ones(2), None) is None
    assert run_on_batch(Returns(), batch) == {"ids": batch["ids"]}
    assert run_on_batch(Needs(), batch) == (batch["ids"], batch["labels"])


class Translates(nn.Module):
    """Makes what its decoder is given of the labels, as transformers with a decoder do."""

    config = SimpleNamespace(is_encoder_decoder=True)

    def forward(self, ids, decoder_input_ids=None, labels=None):
        return labels if decoder_input_ids is None else decoder_input_ids


def test_the_labels_of_a_network_with_a_decoder():
    batch = {"ids": torch.ones(2), "labels": torch.zeros(2)}
    assert run_on_batch(Translates(), batch) is batch["labels"]
    assert run_on_batch(Translates(), {**batch, "decoder_input_ids": batch["ids"]}) is batch["ids"]


class Output(dict):
    """With attributes, as transformers' are."""

    @property
    def logits(self):
        return self["logits"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"logits": logits, "hidden_states": torch.ones(1)},
        lambda logits: Output(loss=torch.ones(()), logits=logits),
        lambda logits: {"out": logits},
        lambda logits: (logits, torch.ones(1)),
        lambda logits: [logits],
    ],
)
def test_the_tensor_that_is_predicted(wrap):
    logits = torch.randn(2, 3)
    assert prediction(wrap(logits)) is logits


@pytest.mark.parametrize(
    "output",
    [(torch.ones(()), torch.ones(2, 3)), {"start_logits": torch.ones(2), "end_logits": torch.ones(2)}, (), None, {}],
)
def test_outputs_without_one(output):
    with pytest.raises(ReductionError, match="no tensor in it is known"):
        prediction(output)


def test_batches_are_pairs_or_mappings():
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 1])
    assert pair_of([x, y]) == (x, y)
    batch = {"pixels": x, "labels": y}
    assert pair_of(batch) == (batch, y)
    for other in (x, [x], {"pixels": x}, (x, None)):
        with pytest.raises(ReductionError, match="pair"):
            pair_of(other)
