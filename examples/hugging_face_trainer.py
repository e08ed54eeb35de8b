"""Hugging Face's Trainer: InfoBatch for a tiny BERT that starts from nothing. Prints its loss before and after."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import isbench

tokens = torch.randint(50, (400, 8), generator=torch.Generator().manual_seed(0))
data = [{"input_ids": text, "labels": text[0] // 25} for text in tokens]


class GuidedTrainer(Trainer):
    loss_is_scaled_for_ga = False  # with gradient accumulation, the Trainer is to divide what `compute_loss` gives

    def get_train_dataloader(self):
        return DataLoader(isbench.indexed(self.train_dataset), batch_sampler=guide, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        indices = inputs.pop("indices", None)  # None in an evaluation
        outputs = model(**inputs)
        losses = F.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
        loss = losses.mean() if indices is None else guide.loss(indices, losses)
        return (loss, outputs) if return_outputs else loss


args = TrainingArguments("trainer", num_train_epochs=4, per_device_train_batch_size=20, learning_rate=0.01)
batch_size = args.train_batch_size * args.world_size
guide = isbench.attach("infobatch", num_examples=len(data), batch_size=batch_size, epochs=4, seed=args.seed)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=2, **sizes))
trainer = GuidedTrainer(model, args, train_dataset=data, eval_dataset=data)
print(f"{trainer.evaluate()['eval_loss']:.3f}")
trainer.train()
print(f"{trainer.evaluate()['eval_loss']:.3f}")
