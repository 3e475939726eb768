"""Everything that gives a verdict: the Llama judge, verifiers, preference judge, rubric, pruner."""
