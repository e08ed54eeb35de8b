"""Prioritized sampling through a DataLoader with workers, epoch by epoch, with a checkpoint in between."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import isbench

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(2000, 20, generator=generator)
data = TensorDataset(inputs, inputs[:, :5].square().sum(dim=1))  # a regression: any loss of each example will do

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)


def attach() -> tuple:
    guide = isbench.attach("prioritized", num_examples=len(data), batch_size=50, epochs=10, seed=0, beta=1.0)
    return guide, DataLoader(isbench.indexed(data), batch_sampler=guide, num_workers=2)


guide, loader = attach()
for epoch in range(10):
    for indices, inputs, values in loader:
        losses = (model(inputs) - values).square()
        optimizer.zero_grad()
        guide.loss(indices, losses).backward()
        optimizer.step()
    if epoch == 4:  # as after a crash: another guide goes on with the same draws
        saved = guide.state_dict()
        guide, loader = attach()
        guide.load_state_dict(saved)
    print(f"{losses.mean():.3f}")
