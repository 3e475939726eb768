"""How a prompt becomes rollouts: core types, renderer, environments, the vLLM generator, recorder."""
