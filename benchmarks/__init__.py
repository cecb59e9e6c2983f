"""Time and memory; results committed as JSON next to machine and versions."""
