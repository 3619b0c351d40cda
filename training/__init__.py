"""What trains and how: flags checked, adapters, the trainer and its loss, samplers, engines, resuming, throughput."""
