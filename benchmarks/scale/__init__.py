"""What a run past this machine asks of a sampler, and which method pays there: the numbers behind docs/scale.md."""
