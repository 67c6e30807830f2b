# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Embeddings whose columns are units: those that layers read, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pyro_bmrs.pruning.layers import layer_units
from pyro_bmrs.pruning.noise.graph import Flow

_READERS = (nn.RNNBase, nn.RNNCellBase)


def read_embeddings(modules: Mapping[str, nn.Module], flows: Sequence[Flow]) -> Iterator[tuple[str, int]]:
    """
    Names of embeddings, and how many columns they have, that come to layers before they come to a norm or a sum.

    What is added to a stream, or normalised, is of the stream, and its columns are its width.

    :param modules: those of a network, by name.
    :param flows: its graphs.
    """
    for name, module in modules.items():
        embedding: Any = module
        if not isinstance(embedding, nn.Embedding | nn.EmbeddingBag) or embedding.embedding_dim < 2:
            continue
        # With such a norm of its rows each column is of the others.
        if embedding.max_norm is not None:
            continue
        read = [flow.readers(node) for flow in flows for node in flow.graph.nodes if flow.called(node) is embedding]
        readers = [reader for some in read for reader in some or ()]
        are_layers = all(layer_units(reader) is not None or isinstance(reader, _READERS) for reader in readers)
        if readers and are_layers and None not in read:
            yield name, embedding.embedding_dim
