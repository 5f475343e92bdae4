"""Tokens in, tokens out: a paged-KV engine with continuous batching. Knows nothing of app, Redis or SQL."""
