"""Lightning: a callback samples by priority, and keeps its state in checkpoints. Prints the last epoch's error."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import isbench

inputs = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
data = TensorDataset(inputs, inputs.abs().sum(dim=1))


class Sampling(pl.Callback):
    def setup(self, trainer, module, stage):
        self.guide = isbench.attach("prioritized", num_examples=len(data), batch_size=50, epochs=trainer.max_epochs)
        self.state_dict, self.load_state_dict = self.guide.state_dict, self.guide.load_state_dict


class Regression(pl.LightningModule):
    def configure_model(self):
        self.network = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, batch, number):
        indices, inputs, values = batch
        losses = (self.network(inputs).squeeze(1) - values).square()
        self.log("error", losses.mean(), on_step=False, on_epoch=True)
        return sampling.guide.loss(indices, losses)

    def train_dataloader(self):
        return DataLoader(isbench.indexed(data), batch_sampler=sampling.guide)


sampling = Sampling()
trainer = pl.Trainer(max_epochs=6, callbacks=[sampling], use_distributed_sampler=False)
trainer.fit(Regression())
print(f"{trainer.callback_metrics['error']:.3f}")
