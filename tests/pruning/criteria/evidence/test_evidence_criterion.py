# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.pruning import BMRS_N, BMRS_U, AutoTruncatedLogNormal, Classification, EvidenceCriterion, prune
from tests.pruning.criteria.guided import fitted

LOW = math.exp(-20)


EVIDENCE = [
    (BMRS_N(), TruncatedLogNormal(-20.0, 1e-6, LOW, 1.0)),
    (BMRS_N(scale=0.1), TruncatedLogNormal(-20.0, 0.1, LOW, 1.0)),
    (BMRS_U(8), LogUniform(LOW, 2.0**-8)),
    (BMRS_U(4), LogUniform(LOW, 2.0**-4)),
    (BMRS_U.paper(4), LogUniform(2.0**-23, 2.0**-4)),
]


@pytest.mark.parametrize(("criterion", "reduced"), EVIDENCE, ids=lambda value: getattr(value, "name", ""))
def test_scores_are_those_of_reduce_model(criterion, reduced):
    net, guide = fitted()
    priors = {name: criterion.reduced_prior(noise.unit_prior) for name, noise in guide.noise.items()}
    guide.noise["0"].kept[1] = False
    reduction = reduce_model(guide, priors, args=(torch.randn(4, 3).double(),))
    scores = criterion.scores(net, guide)
    for name, score in scores.items():
        torch.testing.assert_close(score, reduction.elementwise[name].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(score.sum() for score in scores.values()), reduction.delta_evidence.detach())
    assert type(priors["0"]) is type(reduced)
    for name in reduced.arg_constraints:
        given, expected = getattr(priors["0"], name), getattr(reduced, name).double().expand(6)
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=0)


def test_a_unit_back_at_its_prior_scores_about_nothing():
    """So that parsimony decides: the default odds remove it, even odds with BMRS_N do not."""
    net, guide = fitted()
    with torch.no_grad():
        guide.noise_locs.fill_(-10.0)
        guide.noise_log_scales.fill_(8.0)
    for criterion in (BMRS_N(), BMRS_U(8)):
        score = criterion.scores(net, guide)["0"]
        assert score.abs().max() < 1e-4
        assert (criterion.margins({"0": score})["0"] >= 0).all()


def test_odds_can_differ_between_sites():
    net, guide = fitted()
    scores = BMRS_N().scores(net, guide)
    margins = BMRS_N(prior_log_odds={"0": 0.0, "2": 3.0}).margins(scores)
    assert torch.equal(margins["0"], scores["0"]) and torch.equal(margins["2"], scores["2"] + 3)
    with pytest.raises(ReductionError, match="'2'"):
        prune(net, guide, BMRS_N(prior_log_odds={"0": 0.0}))


class LowestTenth(EvidenceCriterion):
    """A criterion from outside the package: the noise is in the lowest tenth of its interval, on a log scale."""

    def reduced_prior(self, prior):
        return LogUniform(prior.low, prior.low**0.9 * prior.high**0.1)


def test_a_criterion_of_another_reduced_prior_takes_one_method():
    """The change in log evidence is the posterior's probability of the lowest tenth, over the prior's, 1 / 10."""
    net, guide = fitted()
    scores = LowestTenth().scores(net, guide)
    for name, score in scores.items():
        probability = guide.noise_posterior(name).cdf(torch.tensor(-18.0).double().exp()).detach()
        shown = probability > 1e-12
        torch.testing.assert_close(score[shown], (10 * probability[shown]).log(), rtol=1e-6, atol=1e-6)
    result = prune(net, guide, LowestTenth())
    assert result.num_removed and result.criterion.name == "LowestTenth"
    for name, removed in result.removed.items():
        assert torch.equal(removed, scores[name] + 1 >= 0)


def classified():
    """A network with noise, its guide, and labels that the network itself drew."""
    net, _ = fitted()
    guide = AutoTruncatedLogNormal(Classification(net, num_examples=60, kl_weight=2.0))
    with torch.no_grad():
        guide.noise_locs.copy_(-torch.rand(11))
        x = torch.randn(60, 3).double()
        y = (net.eval()[0](x)[:, 0] > 0).long()
    return net, guide, x, y


@pytest.mark.parametrize("criterion", [BMRS_N, BMRS_U])
def test_evidence_that_is_evaluated_decides(criterion):
    net, guide, x, y = classified()
    criterion = criterion(evidence="evaluated", batches=[(x, y)])
    found = criterion.evaluate(net, guide, [(x, y)])
    result = prune(net, guide, criterion)
    assert result.num_removed
    for name, score in result.scores.items():
        assert torch.equal(score, found.change[name])
        going = {unit for unit in range(len(score)) if score[unit] + 1 >= 0}
        rescued = {unit for site, unit in result.rescued if site == name}
        assert set(result.removed[name].nonzero().flatten().tolist()) == going - rescued
    assert f"{criterion.name}: " in repr(result) and criterion.name.endswith("-evaluated")
    assert "(KL weight 2); evidence evaluated on data" in repr(result)
    assert "evidence of the guide, in closed form" in repr(prune(net, guide, type(criterion)()))


def test_a_class_of_one_s_own_may_be_evaluated():
    net, guide, x, y = classified()

    class Evaluated(LowestTenth):
        evidence, batches = "evaluated", [(x, y)]

    scores = prune(net, guide, Evaluated()).scores
    assert scores["0"].shape == (6,) and not torch.equal(scores["0"], LowestTenth().scores(net, guide)["0"])


def test_data_that_are_too_few_to_decide_are_told_of():
    net, guide, x, y = classified()
    guide.model.num_examples = 20_000
    with pytest.warns(ReductionWarning, match="within two standard errors .* evaluated on 60 of 20000 examples"):
        BMRS_N(evidence="evaluated", batches=[(x, y)]).scores(net, guide)


def test_mistakes_of_evidence():
    with pytest.raises(ReductionError, match="'closed' or 'evaluated', not 'exact'"):
        BMRS_N(evidence="exact")
    with pytest.raises(ReductionError, match="batches="):
        BMRS_U(evidence="evaluated")
    with pytest.raises(ReductionError, match="batches="):
        net, guide = fitted()

        class Evaluated(LowestTenth):
            evidence = "evaluated"

        Evaluated().scores(net, guide)
