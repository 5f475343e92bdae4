"""How fast is it, by measurement: `python -m benchmarks NAME [--json FILE] [--check]`."""
