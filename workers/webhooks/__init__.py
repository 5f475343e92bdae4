"""The RQ side of webhooks: one function, JSON arguments."""
