# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Small networks whose units go other ways than from one layer to the next, with what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Graph(nn.Module):
    """A graph convolution, by a product with a matrix that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        nodes = F.relu(adjacency @ self.first(nodes))
        return self.last(F.relu(torch.mm(adjacency, self.second(nodes))))


class Selective(nn.Module):
    """Branches on top of each other, added up with weights of their channels, as in SKNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)])
        self.last = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = F.relu(self.stem(images))
        branches = torch.stack([F.relu(self.wide(images)), F.relu(self.narrow(images))], 1)
        squeezed = F.relu(self.squeeze(branches.sum(1).mean((2, 3))))
        weights = torch.stack([excite(squeezed) for excite in self.excite], 1).softmax(1)
        return self.last((branches * weights[..., None, None]).sum(1).mean((2, 3)))


class Pooled(nn.Module):
    """Attention by one number for each of several instances, by a product of matrices as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)
        self.score, self.gate, self.last = nn.Linear(8, 1), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, bags: Tensor) -> Tensor:
        instances = F.relu(self.first(bags))
        instances = F.relu(self.second(instances * torch.sigmoid(self.gate(instances))))
        weights = self.score(instances).squeeze(-1).softmax(-1)
        return self.last((weights.unsqueeze(-2) @ instances).squeeze(-2))


class Fixed(nn.Module):
    """A batch norm whose numbers are buffers, as in DETR, and a padding by reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, images: Tensor) -> Tensor:
        images = self.first(images) * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)
        images = F.pad(F.relu(images), (1, 1, 1, 1), mode="reflect")
        return self.last(F.relu(self.second(images)).amax((2, 3)))


class Distant(nn.Module):
    """Distances between what is made of points, and of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(11, 2)

    def forward(self, points: Tensor) -> Tensor:
        points = F.relu(self.first(points))
        given = F.normalize(F.relu(self.second(points)), dim=-1)
        return self.last(torch.cat([torch.cdist(points, points), given], -1))


class Counting(nn.Module):
    """Asks for the number of its examples, which no symbolic input has; sines of a multiple; weights that are norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = weight_norm(nn.Conv2d(2, 8, 3)), weight_norm(nn.Conv2d(8, 6, 3))
        self.last = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.second(torch.sin(3 * self.first(images))))
        return self.last(features.mean((2, 3)).reshape(len(images), -1))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "graph": (Graph, lambda: (torch.randn(4, 5), (torch.randn(4, 4) > 0).float())),
    "selective": (Selective, lambda: torch.randn(2, 2, 5, 5)),
    "pooled": (Pooled, lambda: torch.randn(3, 4, 5)),
    "fixed": (Fixed, lambda: torch.randn(2, 2, 5, 5)),
    "distant": (Distant, lambda: torch.randn(2, 5, 4)),
    "counting": (Counting, lambda: torch.randn(2, 2, 7, 7)),
}
