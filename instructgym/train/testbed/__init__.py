"""A world of small checkable tasks, a tiny model trained from nothing in it, and guides of stated reliability."""

__all__: list[str] = []
