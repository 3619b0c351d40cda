"""Training: checks of the flags, adapters, the trainer and its loss, samplers, engines, resuming and throughput."""
