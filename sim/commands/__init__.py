"""The bodies of the larger commands; ``sim/cli.py`` has their options."""
