"""The scripts: short, one file each, validate first and write last, since a script is never rolled back."""
