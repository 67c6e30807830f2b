# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise
from pyro_bmrs.pruning.training.classification import Labels
from tests.pruning.training.guided import NUM_EXAMPLES, all_but_certain, divergences, network


def pixels(classes=3):
    return attach_noise(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 1)))


def tokens(classes=3):
    return attach_noise(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, classes)))


CASES = {
    "pixels": (pixels, (4, 1, 6, 7), (4, 6, 7), 1),
    "tokens": (tokens, (4, 8, 5), (4, 8), -1),
    "grids of tokens": (tokens, (4, 2, 6, 5), (4, 2, 6), -1),
    "examples": (network, (4, 4), (4,), -1),
}


def by_hand(logits, y, class_dim, ignored=-100, weights=None):
    """The negative log likelihood per example, label by label."""
    log_probs = logits.movedim(class_dim, -1).log_softmax(-1).reshape(-1, 3)
    total = 0.0
    for row, label in zip(log_probs, y.flatten().tolist()):
        if label != ignored:
            total = total - row[label] * (1.0 if weights is None else weights[label])
    return total / len(y)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"ignore_index": 2, "class_weights": torch.tensor([0.5, 3.0, 1.0])}], ids=str)
def test_the_log_likelihood_of_an_example_is_the_sum_over_its_labels(case, options):
    make, shape, labels, class_dim = CASES[case]
    model = Classification(make(), NUM_EXAMPLES, **options).eval()
    guide = AutoTruncatedLogNormal(model)
    all_but_certain(guide)
    x, y = torch.randn(shape), torch.randint(3, labels)
    if not options:
        y[0] = -100
    with torch.no_grad():
        divergence = sum(kl.sum() for kl in divergences(guide).values()) / NUM_EXAMPLES
        hand = by_hand(model(x), y, class_dim, options.get("ignore_index", -100), options.get("class_weights"))
        for elbo in (NoiseELBO, TraceMeanField_ELBO):
            torch.testing.assert_close(elbo()(model, guide)(x, y), hand + divergence, rtol=1e-4, atol=1e-4)


def test_an_estimated_divergence_has_the_same_scale():
    """With Trace_ELBO, over many draws, the loss is that of the closed form."""
    model = Classification(tokens(), 10)
    guide = AutoTruncatedLogNormal(model)
    guide.noise_log_scales.data.fill_(-1.0)
    x, y = torch.randn(4, 8, 5), torch.randint(3, (4, 8))
    with torch.no_grad():
        torch.manual_seed(0)
        sampled, closed = (
            torch.stack([elbo()(model, guide)(x, y) for _ in range(150)]) for elbo in (Trace_ELBO, NoiseELBO)
        )
    assert abs(sampled.mean() - closed.mean()) < 4 * ((sampled.var() + closed.var()) / 150).sqrt()


def test_gradients_of_both_losses_agree():
    gradients = []
    for elbo in (NoiseELBO, TraceMeanField_ELBO):
        torch.manual_seed(0)
        model = Classification(pixels(), 10, ignore_index=0)
        module = elbo()(model, AutoTruncatedLogNormal(model))
        x, y = torch.randn(4, 1, 6, 6), torch.randint(3, (4, 6, 6))
        module(x, y).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_labels_are_drawn_of_the_shape_that_they_have():
    model = Classification(pixels(), NUM_EXAMPLES, class_dim=1)
    draws = Predictive(model, guide=AutoTruncatedLogNormal(model), num_samples=3)(torch.randn(4, 1, 6, 7))
    assert draws["y"].shape == (3, 4, 6, 7) and set(draws["y"].unique().tolist()) == {0, 1, 2}


def test_as_many_classes_as_labels():
    """Three tokens of three classes may be read either way, until it is said, or another batch has told."""
    y = torch.randint(3, (2, 3))
    with pytest.raises(ReductionError, match="class_dim=1, as of pixels"):
        Classification(tokens(), 10).negative_log_likelihood(torch.randn(2, 3, 3), y)
    logits = torch.randn(2, 3, 3)
    said, told = Classification(tokens(), 10, class_dim=-1), Classification(tokens(), 10)
    told.negative_log_likelihood(torch.randn(2, 7, 3), torch.randint(3, (2, 7)))
    expected = F.cross_entropy(logits.reshape(6, 3), y.flatten(), reduction="sum") / 2
    for model in (said, told):
        torch.testing.assert_close(model.negative_log_likelihood(logits, y), expected)
    with pytest.raises(ReductionError, match=r"\(2, 3, 7\) and the labels \(2, 7\)"):
        told.negative_log_likelihood(torch.randn(2, 3, 7), torch.randint(3, (2, 7)))


def test_a_language_model_is_for_the_next_token():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    net = transformers.GPT2LMHeadModel(config).eval()
    with pytest.raises(ReductionError, match="next_token=True"):
        Classification(net, 10)
    ids = torch.randint(13, (3, 6))
    batch = {"input_ids": ids, "labels": ids.clone().index_fill(1, torch.tensor([5]), -100)}
    model = Classification(net, 10, next_token=True)
    # Theirs is the mean over labels, of which each example has four.
    expected = 4 * net(**batch).loss
    torch.testing.assert_close(model.negative_log_likelihood(net(input_ids=ids), batch["labels"]), expected)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # renamed in version 5
def test_batches_and_outputs_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    net = attach_noise(transformers.BertForTokenClassification(config))
    model = Classification(net, 20)
    guide = AutoTruncatedLogNormal(model)
    labels = torch.randint(3, (2, 5))
    labels[0, 3:] = -100
    batch = {"input_ids": torch.randint(11, (2, 5)), "attention_mask": torch.ones(2, 5).long(), "labels": labels}
    losses = []
    for elbo in (NoiseELBO, TraceMeanField_ELBO):
        torch.manual_seed(1)
        losses.append(elbo()(model, guide)(batch))
    torch.testing.assert_close(*losses)
    losses[0].backward()
    # All whose output the loss depends on, without the pooler.
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)
    assert model.eval()(batch).shape == (2, 5, 3)
    # With activations that are computed again.
    expected = [parameter.grad for parameter in (*net.parameters(), guide.noise_parameters)]
    net.zero_grad()
    guide.zero_grad()
    net.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(1)
    NoiseELBO()(model.train(), guide)(batch).backward()
    found = [parameter.grad for parameter in (*net.parameters(), guide.noise_parameters)]
    assert all(torch.allclose(*pair) for pair in zip(expected, found) if pair[0] is not None)


@pytest.mark.parametrize(
    ("output", "y", "match"),
    [
        ((4, 3), torch.zeros(4, 3), "shares of classes"),
        ((4, 3), torch.zeros(5).long(), r"\(5,\)"),
        ((4, 3), torch.zeros(4, 1).long(), r"\(4, 1\)"),
        ((4, 1), torch.zeros(4).long(), "Bernoulli"),
        ((4,), torch.zeros(4).long(), "Bernoulli"),
        ((4, 3, 5), torch.zeros(4, 6).long(), r"\(4, 6\)"),
    ],
)
def test_labels_that_do_not_fit(output, y, match):
    with pytest.raises(ReductionError, match=match):
        Classification(network(), 10).negative_log_likelihood(torch.randn(output), y)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"class_dim": 2}, "dimension 1 or -1"),
        ({"class_weights": torch.tensor([1.0, float("nan")])}, "class_weights"),
        ({"class_weights": torch.tensor([1.0, -1.0])}, "class_weights"),
        ({"class_weights": torch.ones(2, 2)}, "class_weights"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(ReductionError, match=match):
        Classification(network(), 10, **options)


def test_labels_without_any_to_ignore_are_categorical():
    logits, y = torch.randn(4, 5, 3), torch.randint(3, (4, 5))
    labels = Labels(logits, -100)
    torch.testing.assert_close(labels.log_prob(y), dist.Categorical(logits=logits).log_prob(y))
    wide = labels.to_event(1).expand([2, 4])
    torch.testing.assert_close(wide.log_prob(y), labels.log_prob(y).sum(-1).expand(2, 4))
