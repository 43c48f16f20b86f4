"""The fault bench, the clients and nodes that use it, and the histories that are checked."""
