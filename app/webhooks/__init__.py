"""Telling others: endpoints, signing, safe addresses, delivery rows."""
