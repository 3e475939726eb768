"""Which prompt comes next: datasets, pass@k statistics, samplers, gates, quotas, system-instruction pools."""
