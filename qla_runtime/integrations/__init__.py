"""The engine inside other libraries, one module per library, which must be installed (docs/integrations.md)."""
