"""The documentation and the examples: their blocks, commands, terminals and manifests."""
