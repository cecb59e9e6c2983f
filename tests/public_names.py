"""What a user may import: names with their objects."""

import inspect


def public_objects(module, prefix):
    """Names and objects of `__all__`, and of the modules in it."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from public_objects(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value
