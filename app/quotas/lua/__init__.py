"""Lua scripts of rate limits; each says what it takes and returns."""
