"""The stages of an alignment: each reads the files of those before it and writes its own."""

__all__: list[str] = []
