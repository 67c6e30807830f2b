# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import attach_noise, compact_gated, noise_sites

WIDTH = 12
TOKENS = torch.arange(60).reshape(6, 10)


class Reader(nn.Module):
    """Embeds tokens, and reads them in one way or another."""

    def __init__(self, reader, read, embedding=None):
        super().__init__()
        self.embedding = nn.Embedding(60, WIDTH) if embedding is None else embedding
        self.reader, self.last, self.read = reader, nn.Linear(8, 3), read

    def forward(self, tokens):
        return self.last(self.read(self.reader, self.embedding(tokens)))


READERS = {
    "recurrent": (lambda: nn.LSTM(WIDTH, 8, batch_first=True), lambda reader, x: reader(x)[0]),
    "pooled": (lambda: nn.Linear(WIDTH, 8), lambda reader, x: reader(x.mean(1)).relu()),
    "images": (lambda: nn.Conv1d(WIDTH, 8, 3), lambda reader, x: reader(x.transpose(1, 2)).amax(-1)),
    "several": (lambda: nn.Linear(2 * WIDTH, 8), lambda reader, x: reader(torch.cat([x[:, 0], x[:, 1]], -1)).relu()),
}
OTHERS = {
    "sum": (lambda: nn.Linear(WIDTH, 8), lambda reader, x: reader(x + torch.ones(10, WIDTH)).relu().mean(1)),
    "norm": (
        lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8)),
        lambda reader, x: reader(x).relu().mean(1),
    ),
    "stream": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 9, batch_first=True), nn.Linear(WIDTH, 8)),
        lambda reader, x: reader(x).relu().mean(1),
    ),
}


def network(readers, name, embedding=None):
    torch.manual_seed(0)
    make, read = readers[name]
    return Reader(make(), read, embedding).double().eval()


@pytest.mark.parametrize("name", READERS)
def test_columns_of_an_embedding_that_layers_read_are_units(name):
    net = network(READERS, name)
    expected = network(READERS, name)
    attach_noise(net, example_inputs=TOKENS)
    assert noise_sites(net)["embedding"].noise.num_units == WIDTH
    gates = {site: torch.ones(len(found.noise.kept)).double() for site, found in noise_sites(net).items()}
    gates["embedding"][:5], gates["embedding"][5] = 0, 0.25
    small = compact_gated(net, gates, noise_sites(net), TOKENS)
    with torch.no_grad():
        expected.embedding.weight *= gates["embedding"]
    torch.testing.assert_close(small(TOKENS), expected(TOKENS), rtol=0, atol=1e-12)
    assert small.embedding.embedding_dim == WIDTH - 5


def test_a_bag_has_units_too():
    net = attach_noise(nn.Sequential(nn.EmbeddingBag(60, WIDTH), nn.Linear(WIDTH, 4)), example_inputs=TOKENS)
    gates = {"0": torch.arange(WIDTH) % 2 / 1.0}
    small = compact_gated(net.eval(), gates, noise_sites(net), TOKENS)
    assert small[0].embedding_dim == WIDTH // 2


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_added_to_or_normalised_is_of_a_stream(name):
    net = attach_noise(network(OTHERS, name), example_inputs=TOKENS)
    assert "embedding" not in noise_sites(net)


@pytest.mark.parametrize("embedding", [nn.Embedding(60, WIDTH, max_norm=1.0), nn.Embedding(60, 1)])
def test_columns_that_are_none_by_themselves(embedding):
    reader = nn.Linear(embedding.embedding_dim, 8)
    net = Reader(reader, lambda layer, x: layer(x.mean(1)).relu(), embedding)
    assert "embedding" not in noise_sites(attach_noise(net, example_inputs=TOKENS))
