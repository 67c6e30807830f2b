# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, PosteriorMean, compact, compaction_report, noise_sites, prune

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

from tutorials.paper.networks import NETWORKS, build_network, find_network  # noqa: E402

GREY, COLOUR = (1, 32, 32), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("mlp-6x50", GREY, 1024 * 50 + 50 + 5 * (50 * 50 + 50) + 510),
        ("mlp-6x50", COLOUR, 3072 * 50 + 50 + 5 * (50 * 50 + 50) + 510),
        # As often published.
        ("lenet5", GREY, 61_706),
        ("lenet5_caffe", (1, 28, 28), 431_080),
        # He et al.'s 0.27 million for CIFAR-10, and the projections of two shortcuts.
        ("resnet20", COLOUR, 272_474),
        ("resnet18", COLOUR, 11_173_962),
        ("resnet50", COLOUR, 23_520_842),
    ],
)
def test_parameters(name, shape, parameters):
    net = build_network(name, shape, 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape", "units"),
    [
        ("mlp-6x50", GREY, 6 * [50]),
        ("mlp-1x150", COLOUR, [150]),
        ("lenet5", GREY, [6, 16, 120, 84]),
        ("lenet5", COLOUR, [18, 48, 360, 252]),
        ("lenet5_caffe", (1, 28, 28), [20, 50, 500]),
    ],
)
def test_units_with_noise(name, shape, units):
    net = find_network(name).attach_noise(build_network(name, shape, 10), per_example=True)
    assert [site.noise.num_units for site in noise_sites(net).values()] == units


@pytest.mark.parametrize(("name", "shape"), [("resnet20", COLOUR), ("vit", COLOUR)])
def test_units_can_be_taken_out(name, shape):
    if name == "vit":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    network, image = find_network(name), torch.randn(1, *shape)
    net = network.attach_noise(build_network(name, shape, 10), per_example=True)
    guide = AutoTruncatedLogNormal(net)
    # In place of fitting: the first half of each layer, so that units that are tied agree.
    halves = [torch.arange(noise.num_units) < noise.num_units // 2 for noise in guide.noise.values()]
    guide.noise_locs.data.copy_(-2.0 * torch.cat(halves))
    prune(net, guide, PosteriorMean(), fraction=0.5, example_inputs=image if network.ties_units else None)
    layers = compaction_report(compact(net, guide, image)).layers.sum()
    # Of parameters between two halved layers a quarter is left, of others half; the rest has no noise.
    assert layers["parameters_after"] < (0.7 if name == "vit" else 0.35) * layers["parameters_before"]


def test_a_name_that_is_not_known():
    with pytest.raises(ReductionError, match="did you mean 'lenet5'"):
        build_network("lenet", GREY, 10)
    with pytest.raises(ReductionError, match=", ".join(NETWORKS)):
        build_network("xyzzy", GREY, 10)


@pytest.mark.parametrize(
    ("name", "shape", "mend"),
    [
        ("lenet5", (1, 28, 28), "--data.size 32"),
        ("lenet5", (1, 8, 8), "--data.size 32"),
        ("lenet5_caffe", (1, 32, 32), "--data.size 28"),
    ],
)
def test_images_that_do_not_fit(name, shape, mend):
    with pytest.raises(ReductionError, match=f"{shape[1]}x{shape[2]} pixels and 1 channels; .*{mend}"):
        build_network(name, shape, 10)


@pytest.mark.parametrize("name", ["mlp-0x50", "mlp-6x0", "mlp-6", "mlp-6x50x2"])
def test_an_mlp_of_no_size(name):
    with pytest.raises(ReductionError, match="mlp-6x50"):
        find_network(name)


def test_a_pretrained_network_keeps_its_weights_and_gets_noise(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    trained = transformers.ViTForImageClassification(config)
    trained.save_pretrained(tmp_path)
    name = f"pretrained:{tmp_path}"
    net = build_network(name, (3, 8, 8), 10)
    for kind in ("intermediate.dense.weight", "mlp.fc1.weight"):
        for key, value in trained.state_dict().items():
            if key.endswith(kind):
                assert torch.equal(net.state_dict()[f"net.{key}"], value)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    noisy = find_network(name).attach_noise(net, per_example=True)
    assert sum(site.noise.num_units == 24 for site in noise_sites(noisy).values()) == 2


def test_a_pretrained_network_that_is_not_there(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ReductionError, match="no network for images"):
        build_network(f"pretrained:{tmp_path}", COLOUR, 10)


def test_images_that_cannot_be_cut_into_patches():
    pytest.importorskip("transformers")
    with pytest.raises(ReductionError, match="square"):
        build_network("vit", (3, 32, 28), 10)
