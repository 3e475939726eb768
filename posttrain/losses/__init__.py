"""What RL optimizes, in pure functions: advantages, policy losses, off-policy corrections, KL, weights of tokens."""
