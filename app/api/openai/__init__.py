"""The OpenAI-compatible face: chat/completions, completions, responses, models. Every call is a job underneath."""
