"""Other processes: whole programs, agents of torchrun, nodes of a rendezvous; what a process holds."""
