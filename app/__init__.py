"""The control plane: accepts jobs, queues them, accounts for them, shows them. Never loads a model."""
