"""The numbers of docs/scale.md: what a run too large for this machine asks of a sampler, and which method pays."""
