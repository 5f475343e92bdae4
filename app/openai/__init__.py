"""OpenAI's bodies as they are understood here: of a call, and of a line of a batch."""
