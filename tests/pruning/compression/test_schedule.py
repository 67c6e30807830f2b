# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs import ReductionError

pytest.importorskip("lightning")
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    Occam,
    OccamPrices,
    OccamSchedule,
    PruningCallback,
    attach_noise,
    occam_prices,
    parameter_groups,
)

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
LOADER = DataLoader(TensorDataset(X, (X[:, 0] > 0).long()), batch_size=16, shuffle=True)


def test_units_go_as_prices_rise(tmp_path):
    from lightning.pytorch import LightningModule, Trainer

    torch.manual_seed(0)
    model = Classification(attach_noise(nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 2))), 160)
    model.kl_weight = occam = Occam(occam_prices(model, LOADER))
    seen = []

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))

        def training_step(self, batch, batch_idx):
            seen.append(occam.temperature)
            return self.elbo(*batch)

        def configure_optimizers(self):
            return torch.optim.Adam(parameter_groups(self.elbo, lr=1e-2, noise_lr=0.5))

    pruning = PruningCallback(every_n_epochs=2)
    trainer = Trainer(
        max_epochs=8,
        callbacks=[OccamSchedule(occam, every_n_epochs=2), pruning],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), LOADER)
    assert seen == sorted(seen) and seen[::20] == pytest.approx([2.0**k for k in range(-2, 5, 2)])
    counts = [result.num_kept for result in pruning.results]
    assert counts == sorted(counts, reverse=True) and counts[-1] < 20


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"ladder": []}])
def test_mistakes(options):
    with pytest.raises(ReductionError):
        OccamSchedule(Occam(OccamPrices({"0": torch.ones(2)}, {})), **options)
